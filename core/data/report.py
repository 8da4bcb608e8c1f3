"""The account of the data: what became of every row, by reason, and what the user should know before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from luthier.core.data.tally import Tally, reasons
from luthier.core.errors import DataError
from luthier.core.frozen import FrozenDict

MANY: Final = 0.05
NOT_SAMPLED: Final = "not sampled"


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """One source before sampling and holding out: rows read, kept, dropped, cut; whether its tokens were in the cache."""

    name: str
    role: Literal["train", "eval"]
    format: str
    rows: int
    kept: int
    dropped: int
    cut: int
    cached: bool


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What became of every row: rows + the sum of `added` == kept + held_out + the sum of `dropped`.

    rows            read from all sources
    kept            rows to train on
    held_out        rows to evaluate on
    dropped         rows left out, by reason
    cut             rows kept in part, by reason; one may have several
    added           rows beyond those read, by reason: repeated ones, parts of one that was split
    notes           rows with something remarkable about them, by what it is
    duplicates      training rows whose content occurs before
    tokens          of the rows to train on, padding not counted
    trained_tokens  of these, the ones that are learned
    held_out_tokens of the rows to evaluate on
    longest         tokens of the longest row to train on
    labels_from     how it was decided which tokens are learned
    template        the chat template, where there is one
    sources         each source by itself
    windows         of rows that were streamed, those begun so far; None where all rows were prepared beforehand
    warnings        what the user should know before training
    """

    rows: int
    kept: int
    held_out: int
    dropped: FrozenDict[str, int]
    cut: FrozenDict[str, int] = field(default_factory=FrozenDict)
    added: FrozenDict[str, int] = field(default_factory=FrozenDict)
    notes: FrozenDict[str, int] = field(default_factory=FrozenDict)
    duplicates: int = 0
    tokens: int
    trained_tokens: int
    held_out_tokens: int
    longest: int
    labels_from: str
    template: str = ""
    sources: tuple[SourceReport, ...] = ()
    windows: int | None = None
    warnings: tuple[str, ...] = ()


def tally_warnings(tally: Tally) -> Iterator[str]:
    """Sentences about what is out of the ordinary: many rows dropped or cut, answers that are not learned or do not end."""
    dropped = {reason: count for reason, count in tally.dropped.items() if reason != NOT_SAMPLED}
    for total, counts, verb in ((sum(dropped.values()), dropped, "dropped"), (tally.cut_rows, tally.cut, "cut")):
        if total > MANY * tally.rows:
            yield f"{total} of {tally.rows} rows ({total / tally.rows:.0%}) were {verb}: {reasons(counts, verb)}"
    for note, count in tally.notes.items():
        yield f"{count} of {tally.rows} rows: {note}"
    if tally.marked < tally.turns:
        yield f"the chat template marks {tally.marked} of {tally.turns} answers to be learned"
    if tally.unclosed:
        yield f"{tally.unclosed} of {tally.marked} answers end with no end-of-turn token: the model may not learn to stop"


def nothing_left(names: Sequence[str], tally: Tally, labels_from: str) -> DataError:
    """The error for data of which no row, or no token to learn, is left; with the counts."""
    from luthier.core.data.encode.lengths import NOTHING_TO_LEARN

    if tally.shortest_dropped is not None:
        fix = f"raise data.max_length: the shortest row that was dropped has {tally.shortest_dropped} tokens"
    elif tally.kept or any(reason.startswith(NOTHING_TO_LEARN) for reason in tally.dropped):
        fix = (
            f"labels come from {labels_from}: correct the chat template, take `train: false` out of the rows, or learn all "
            "tokens with data.train_on: all"
        )
    else:
        fix = "correct the rows: with data.bad_rows: error the first that is faulty is named"
    counted = reasons(tally.dropped, "dropped")
    if tally.kept:
        counted = ", ".join(filter(None, [f"{tally.kept} kept without a token to learn", counted]))
    message = (
        f"no {'token' if tally.kept else 'row'} is left to learn from; of {tally.rows} read, {counted or 'none is kept'}"
    )
    return DataError(message, where=", ".join(names), fix=fix)


def frozen(counts: Mapping[str, int]) -> FrozenDict[str, int]:
    """Counts for the report, those of nothing left out."""
    return FrozenDict({reason: count for reason, count in counts.items() if count})
