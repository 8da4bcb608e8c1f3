"""What there is to say about prepared data: the first rows with their trained tokens, lengths, batches, duplicates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np

from luthier.core.data.batches import BatchSchedule
from luthier.core.data.examples import IGNORED, Example, Examples
from luthier.core.data.prepare import PreparedData
from luthier.core.data.report import DataReport

BINS: Final = 20
MOST_REPEATED: Final = 5
BEGINNING: Final = 80
PAIR: Final = ("chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring tokens that are all learned, or all not; `text` is what they decode to, special tokens included."""

    text: str
    trained: bool
    tokens: int


@dataclass(frozen=True, kw_only=True)
class ShownSequence:
    """One sequence of tokens in runs; `name` tells the two answers of a preference row apart, and is empty for others."""

    name: str
    runs: tuple[Run, ...]

    @property
    def tokens(self) -> int:
        return sum(run.tokens for run in self.runs)

    @property
    def trained(self) -> int:
        return sum(run.tokens for run in self.runs if run.trained)


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """A training row, numbered from 1 in the order of the sources.

    `value` is the label or margin, `reference` what answers to a prompt are judged by, where there is one.
    """

    number: int
    sequences: tuple[ShownSequence, ...]
    value: float | None = None
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the sequences to train on. `counts[i]` of them have edges[i] <= tokens < edges[i + 1]."""

    shortest: int
    median: float
    mean: float
    percentile_95: float
    longest: int
    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Batching:
    """One epoch in micro-batches of `batch_tokens`: with rows of similar length padded together, and packed.

    padding       the part of all positions that is padding, when batches are padded
    efficiency    tokens in packed batches, as a part of all the room in them
    """

    batch_tokens: int
    packing: bool
    padded_batches: int
    padding: float
    packed_batches: int
    efficiency: float


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """A row that stands more than once among those to train on, and how what is learned of it begins."""

    times: int
    beginning: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that `luthier data inspect` shows."""

    report: DataReport
    rows: tuple[ShownRow, ...]
    lengths: Lengths
    batching: Batching
    repeated: tuple[Repeated, ...]


def inspect_data(
    data: PreparedData, tokenizer: Any, *, batch_tokens: int, packing: bool, seed: int = 0, rows: int = 3
) -> Inspection:
    """Measure prepared data and render its first `rows` training rows."""
    train = data.train
    shown = min(rows, len(train) // train.per_row)
    return Inspection(
        report=data.report,
        rows=tuple(_row(train, number, tokenizer) for number in range(shown)),
        lengths=measure_lengths(train.lengths),
        batching=_batching(train, batch_tokens, packing, seed),
        repeated=tuple(_repeated(train, tokenizer)),
    )


def _row(train: Examples, row: int, tokenizer: Any) -> ShownRow:
    names = PAIR if train.per_row == len(PAIR) else ("",)
    sequences = (
        ShownSequence(name=name, runs=tuple(runs_of(train[row * train.per_row + part], tokenizer)))
        for part, name in enumerate(names)
    )
    value = float(train.values[row])
    return ShownRow(
        number=row + 1,
        sequences=tuple(sequences),
        value=None if math.isnan(value) else value,
        reference=train.reference(row),
    )


def runs_of(example: Example, tokenizer: Any) -> Iterator[Run]:
    """The tokens of one sequence, decoded run by run."""
    marked = zip(example["input_ids"].tolist(), (example["labels"] != IGNORED).tolist(), strict=True)
    for trained, run in groupby(marked, key=lambda token: token[1]):
        ids = [token for token, _ in run]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        yield Run(text=text, trained=trained, tokens=len(ids))


def measure_lengths(lengths: Any) -> Lengths:
    """Statistics and a histogram of int (sequences,), in at most 20 bins of equal whole width from 0."""
    lengths = np.asarray(lengths)
    longest = int(lengths.max())
    width = max(1, -(-(longest + 1) // BINS))
    edges = np.arange(0, longest + 1 + width, width)
    counts, _ = np.histogram(lengths, bins=edges)
    return Lengths(
        shortest=int(lengths.min()),
        median=float(np.median(lengths)),
        mean=float(lengths.mean()),
        percentile_95=float(np.percentile(lengths, 95)),
        longest=longest,
        edges=tuple(int(edge) for edge in edges),
        counts=tuple(int(count) for count in counts),
    )


def _batching(train: Examples, batch_tokens: int, packing: bool, seed: int) -> Batching:
    padded = BatchSchedule(train.lengths, batch_tokens=batch_tokens, seed=seed)
    packed = BatchSchedule(train.lengths, batch_tokens=batch_tokens, seed=seed, packing=True)
    return Batching(
        batch_tokens=batch_tokens,
        packing=packing,
        padded_batches=len(padded),
        padding=padded.padding,
        packed_batches=len(packed),
        efficiency=packed.efficiency,
    )


def _repeated(train: Examples, tokenizer: Any) -> Iterator[Repeated]:
    _, first, counts = np.unique(train.keys, return_index=True, return_counts=True)
    for place in np.argsort(-counts, kind="stable")[:MOST_REPEATED]:
        if counts[place] > 1:
            example = train[int(first[place]) * train.per_row]
            learned = example["input_ids"][example["labels"] != IGNORED]
            ids = (learned if len(learned) else example["input_ids"])[:BEGINNING]
            text = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
            yield Repeated(times=int(counts[place]), beginning=text[:BEGINNING])
