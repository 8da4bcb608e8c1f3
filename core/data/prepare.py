"""Files to token ids: every row is read, converted, written by the chat template, kept or dropped, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from luthier.core.config.schema import RunConfig, SourceConfig
from luthier.core.contracts import DataKind
from luthier.core.data.chat import ChatEncoder, ChatRow
from luthier.core.data.examples import Examples, ExamplesBuilder
from luthier.core.data.formats import Formats, OpenSource, conversation_of, open_source
from luthier.core.data.holdout import Keys, content_key, hold_out, rows_to_hold_out
from luthier.core.errors import DataError
from luthier.core.frozen import FrozenDict

T = TypeVar("T")
ROWS_AT_ONCE: Final = 512
MANY_DROPPED: Final = 0.05
NOTHING_TO_LEARN: Final = "no token to learn"


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What became of every row: rows == kept + held_out + the sum of `dropped`.

    rows            read from all sources
    kept            rows to train on
    held_out        rows to evaluate on
    dropped         rows left out, by reason
    tokens          of the rows to train on, padding not counted
    trained_tokens  of these, the ones that are learned
    held_out_tokens of the rows to evaluate on
    longest         tokens of the longest row to train on
    labels_from     how it was decided which tokens are learned
    warnings        what the user should know before training
    """

    rows: int
    kept: int
    held_out: int
    dropped: FrozenDict[str, int]
    tokens: int
    trained_tokens: int
    held_out_tokens: int
    longest: int
    labels_from: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Rows to train on, rows to evaluate on (none when nothing is held out), and the account of how they came about."""

    train: Examples
    eval: Examples
    report: DataReport


@dataclass
class _Tally:
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    shortest_dropped: int | None = None
    turns: int = 0
    marked: int = 0
    unclosed: int = 0

    def __add__(self, other: _Tally) -> _Tally:
        shortest = [count for count in (self.shortest_dropped, other.shortest_dropped) if count is not None]
        return _Tally(
            rows=self.rows + other.rows,
            dropped=self.dropped + other.dropped,
            shortest_dropped=min(shortest, default=None),
            turns=self.turns + other.turns,
            marked=self.marked + other.marked,
            unclosed=self.unclosed + other.unclosed,
        )

    def reasons(self) -> str:
        return ", ".join(f"{count} dropped ({reason})" for reason, count in self.dropped.items())


def prepare(
    config: RunConfig, formats: Formats, tokenizer: Any, *, kind: DataKind, base: Path | None = None
) -> PreparedData:
    """Tokenise the sources of `config.data` for a stage that learns from `kind`, and hold rows out.

    `tokenizer` is a transformers tokenizer with a chat template; `base` is the configuration file's folder. A row longer
    than `data.max_length` tokens is dropped and counted. Raises DataError, naming file, line and column, for everything
    else that is wrong with a row; and, with the counts, when no row or no token to learn is left.
    """
    data = config.data
    train_sources = _open(data.train, formats, kind, base)
    eval_sources = _open(data.eval if isinstance(data.eval, tuple) else (), formats, kind, base)
    encoder = ChatEncoder(tokenizer, train_on=data.train_on, max_length=data.max_length)
    examples, keys, tally = _encode(train_sources, encoder, config.train.seed)
    notes: list[str] = []
    if isinstance(data.eval, tuple):
        held, held_keys, eval_tally = _encode(eval_sources, encoder, config.train.seed)
        tally += eval_tally
        both = int(np.isin(held_keys, keys).sum())
        if both:
            notes.append(f"{both} of {len(held)} held-out rows also stand among the training rows")
    else:
        examples, held = _split(examples, keys, data.eval)
        if data.eval and not len(held):
            notes.append("no row could be held out: the rows are copies of each other, and copies stay together")
    report = DataReport(
        rows=tally.rows,
        kept=len(examples),
        held_out=len(held),
        dropped=FrozenDict(tally.dropped),
        tokens=examples.tokens,
        trained_tokens=examples.trained_tokens,
        held_out_tokens=held.tokens,
        longest=int(examples.lengths.max()),
        labels_from=encoder.labels_from,
        warnings=(*notes, *_warnings(tally)),
    )
    return PreparedData(examples, held, report)


def _open(sources: Sequence[SourceConfig], formats: Formats, kind: DataKind, base: Path | None) -> list[OpenSource]:
    opened = [open_source(source, formats, base) for source in sources]
    for source in opened:
        found = source.format.value
        if found.kind != kind:
            message = f"rows of the format {found.name} hold {found.kind} data, and the stage learns from {kind} data"
        elif kind != "conversation":
            message = f"{kind} data cannot be prepared: only conversations can"
        else:
            continue
        raise DataError(message, where=str(source.path), fix="choose a stage that learns from such rows, or other rows")
    return opened


def _encode(sources: Sequence[OpenSource], encoder: ChatEncoder, seed: int) -> tuple[Examples, Keys, _Tally]:
    """The rows that are kept, the key of each one's content, and the counts."""
    builder, tally = ExamplesBuilder(), _Tally()
    keys: list[int] = []
    too_long = f"longer than {encoder.max_length} tokens"
    for rows in _chunks(_conversations(sources), ROWS_AT_ONCE):
        tally.rows += len(rows)
        for (_, messages), row in zip(rows, encoder.encode(rows), strict=True):
            if len(row.ids) > encoder.max_length:
                tally.dropped[too_long] += 1
                tally.shortest_dropped = min(len(row.ids), tally.shortest_dropped or len(row.ids))
                continue
            tally.turns += row.turns
            tally.marked += row.marked
            tally.unclosed += row.unclosed
            if not any(row.trained):
                tally.dropped[NOTHING_TO_LEARN] += 1
                continue
            builder.add(row.ids, row.trained)
            keys.append(content_key(messages, seed))
    if sources and not keys:
        raise _nothing_left(sources, tally, encoder)
    return builder.finish(), np.array(keys, dtype=np.uint64), tally


def _conversations(sources: Iterable[OpenSource]) -> Iterator[ChatRow]:
    for source in sources:
        for row in source.rows():
            yield row, conversation_of(source.format, row)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _split(examples: Examples, keys: Keys, part: float | int) -> tuple[Examples, Examples]:
    wanted = rows_to_hold_out(part, len(examples))
    if wanted >= len(examples):
        raise DataError(
            f"holding out {wanted} of {len(examples)} rows leaves none to train on",
            where="data.eval",
            fix="hold out fewer rows, or give evaluation sources of their own",
        )
    held = hold_out(keys, wanted)
    return examples.where(~held), examples.where(held)


def _warnings(tally: _Tally) -> Iterator[str]:
    dropped = sum(tally.dropped.values())
    if dropped > MANY_DROPPED * tally.rows:
        yield f"{dropped} of {tally.rows} rows ({dropped / tally.rows:.0%}) were dropped: {tally.reasons()}"
    if tally.marked < tally.turns:
        yield f"the chat template marks {tally.marked} of {tally.turns} answers to be learned"
    if tally.unclosed:
        yield f"{tally.unclosed} of {tally.marked} answers end with no end-of-turn token: the model may not learn to stop"


def _nothing_left(sources: Sequence[OpenSource], tally: _Tally, encoder: ChatEncoder) -> DataError:
    if tally.shortest_dropped is not None:
        fix = f"raise data.max_length: the shortest row that was dropped has {tally.shortest_dropped} tokens"
    else:
        fix = (
            f"labels come from {encoder.labels_from}: correct the chat template, or learn all tokens with data.train_on: all"
        )
    files = ", ".join(str(source.path) for source in sources)
    return DataError(f"no row is left to learn from; of {tally.rows} read, {tally.reasons()}", where=files, fix=fix)
