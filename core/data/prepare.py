"""Sources to rows to train on and rows to evaluate on: tokenised, sampled, held out, mixed, and every one accounted for.

each source -> tokens, from the cache or made -> sampled -.
each source -> ...                                         +-> held out by content -> the rest mixed -> train
eval sources -> ...                                       -------------------------------------------> eval
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from luthier.core.config.schema import AUTO, DataConfig, RunConfig, SourceConfig
from luthier.core.contracts import DataKind
from luthier.core.data.cache import Notice
from luthier.core.data.examples import Examples
from luthier.core.data.formats import Formats, OpenSource, open_source
from luthier.core.data.holdout import hold_out, mix_keys, rows_to_hold_out
from luthier.core.data.making import Maker, Progress, SourceTokens
from luthier.core.data.mixing import interleave, sample_rows
from luthier.core.data.report import NOT_SAMPLED, DataReport, frozen, nothing_left, tally_warnings
from luthier.core.data.store import Bools, Ints
from luthier.core.data.tally import Tally
from luthier.core.data.tokenise import SPLIT
from luthier.core.data.workers import WorkerPool
from luthier.core.errors import DataError

REPEATED: Final = "repeated by sampling"
NOT_REACHED: Final = "not reached when a source was used up"
BEGUN_ANEW: Final = "repeated until every source was used up"


@dataclass(frozen=True, eq=False)
class PreparedData:
    """Rows to train on, rows to evaluate on (none when nothing is held out), and the account of how they came about."""

    train: Examples
    eval: Examples
    report: DataReport


def prepare(
    config: RunConfig,
    formats: Formats,
    tokenizer: Any,
    *,
    kind: DataKind,
    base: Path | None = None,
    notice: Notice = lambda text: None,
    progress: Progress = lambda source, done, total: None,
) -> PreparedData:
    """Tokenise the sources of `config.data` for a stage that learns from `kind`, hold rows out, and mix the others.

    `tokenizer` is a transformers tokenizer; it gets the chat template that `data.template` names. `base` is the
    configuration file's folder. `notice` hears sentences for the user, `progress` (source, rows done, of how many). Raises
    DataError, naming file, row and column, for what is wrong with a row; and, with the counts, when no row or no token to
    learn is left; OutputError where the cache cannot be used.
    """
    data, seed = config.data, config.train.seed
    held_sources = data.eval if isinstance(data.eval, tuple) else ()
    training = [open_of_kind(source, data, formats, kind, base) for source in data.train]
    evaluating = [open_of_kind(source, data, formats, kind, base) for source in held_sources]
    remarks = use_template(tokenizer, data, kind, base)
    with WorkerPool() as pool:
        maker = Maker(tokenizer, data, kind, pool, notice, progress)
        train = [maker.tokens(source) for source in training]
        held = [maker.tokens(source) for source in evaluating]
    tally = Tally()
    for sources in (train, held):
        _check_rows(sources, maker)
    for source in (*train, *held):
        tally += source.tally
    duplicates = _duplicates(train)
    parts = _sampled(train, data.train, seed, tally)
    whole = _examples(train, parts)
    if isinstance(data.eval, tuple):
        evaluated = _examples(held, _sampled(held, held_sources, seed, tally, after=len(train)))
        both = int(np.isin(evaluated.keys, whole.keys).sum())
        if both:
            remarks.append(f"{both} of {evaluated.rows} held-out rows also stand among the training rows")
    else:
        mask = _held_out(whole, data.eval, seed)
        evaluated = whole.where(mask)
        parts = [part[~out] for part, out in zip(parts, np.split(mask, np.cumsum([*map(len, parts)])[:-1]), strict=True)]
        if data.eval and not evaluated.rows:
            remarks.append("no row could be held out: the rows are copies of each other, and copies stay together")
    examples = Examples(whole.stores, _mixed(parts, data, seed, tally))
    if kind != "prompt" and not examples.trained_tokens:
        raise nothing_left([source.name for source in train], tally, maker.encoder.labels_from)
    report = DataReport(
        rows=tally.rows,
        kept=examples.rows,
        held_out=evaluated.rows,
        dropped=frozen(tally.dropped),
        cut=frozen(tally.cut),
        added=frozen(tally.added),
        notes=frozen(tally.notes),
        duplicates=duplicates,
        tokens=examples.tokens,
        trained_tokens=examples.trained_tokens,
        held_out_tokens=evaluated.tokens,
        longest=int(examples.lengths.max()),
        labels_from=maker.encoder.labels_from,
        template=maker.encoder.template,
        sources=(*(source.report("train") for source in train), *(source.report("eval") for source in held)),
        warnings=(*remarks, *tally_warnings(tally)),
    )
    return PreparedData(examples, evaluated, report)


def open_of_kind(
    source: SourceConfig,
    data: DataConfig,
    formats: Formats,
    kind: DataKind,
    base: Path | None = None,
    *,
    streaming: bool = False,
) -> OpenSource:
    """A source that a stage which learns from `kind` can use; raises DataError for any other."""
    opened = open_source(source, formats, base, streaming=streaming, drop_bad=data.bad_rows == "drop")
    if opened.kind != kind:
        raise DataError(
            f"rows of the format {opened.format.value.name} hold {opened.kind} data, and the stage learns from {kind} data",
            where=opened.name,
            fix="choose a stage that learns from such rows, or other rows",
        )
    return opened


def use_template(tokenizer: Any, data: DataConfig, kind: DataKind, base: Path | None) -> list[str]:
    """Give the tokenizer the chat template where it has not got it; texts need none of their own. Returns warnings."""
    from luthier.core.data.templates import apply_template, choose_template

    if kind == "text" and data.template == AUTO:
        return []
    template = choose_template(tokenizer, data.template, base)
    return [] if tokenizer.chat_template == template.text else list(apply_template(tokenizer, template))


def _check_rows(sources: Sequence[SourceTokens], maker: Maker) -> None:
    tally = Tally()
    for source in sources:
        tally += source.tally
    if sources and not tally.kept:
        raise nothing_left([source.name for source in sources], tally, maker.encoder.labels_from)


def _examples(sources: Sequence[SourceTokens], parts: Sequence[Ints]) -> Examples:
    return Examples([source.entry.store for source in sources], np.concatenate([np.empty(0, np.int64), *parts]))


def _duplicates(sources: Sequence[SourceTokens]) -> int:
    """Rows whose content occurs before; the parts of one that was split have its key, and are no copies."""
    keys = np.concatenate([np.empty(0, np.uint64), *(source.entry.store.keys for source in sources)])
    return len(keys) - len(np.unique(keys)) - sum(source.tally.added[SPLIT] for source in sources)


def _sampled(
    sources: Sequence[SourceTokens], configs: Sequence[SourceConfig], seed: int, tally: Tally, *, after: int = 0
) -> list[Ints]:
    """The rows that each source's `sample` takes, counted through all sources; the others and the repeated ones counted."""
    parts, begin = [], 0
    for number, (source, config) in enumerate(zip(sources, configs, strict=True), after):
        rows = len(source.entry.store)
        taken = sample_rows(rows, config.sample, seed, number)
        tally.dropped[NOT_SAMPLED] += max(0, rows - len(taken))
        tally.added[REPEATED] += max(0, len(taken) - rows)
        parts.append(begin + taken)
        begin += rows
    return parts


def _held_out(examples: Examples, part: float | int, seed: int) -> Bools:
    return hold_out(mix_keys(examples.keys, seed), rows_to_hold_out(part, examples.rows))


def _mixed(parts: Sequence[Ints], data: DataConfig, seed: int, tally: Tally) -> Ints:
    """The training rows in their order; a source of which nothing is left takes no part in the drawing."""
    filled = [(part, source.weight) for part, source in zip(parts, data.train, strict=True) if len(part)]
    if data.mix == "concatenate" or len(filled) < 2:
        return np.concatenate([part for part, _ in filled])
    sources, rows = interleave([len(part) for part, _ in filled], [weight for _, weight in filled], data.stop, seed)
    order = np.empty(len(rows), dtype=np.int64)
    for number, (part, _) in enumerate(filled):
        here = sources == number
        order[here] = part[rows[here]]
        taken = int(here.sum())
        tally.dropped[NOT_REACHED] += max(0, len(part) - taken)
        tally.added[BEGUN_ANEW] += max(0, taken - len(part))
    return order
