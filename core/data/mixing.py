"""Several sources as one: sampled, then one after another or drawn at random by their weights. Only row numbers move.

    interleave, weights 3 and 1:   a a b a a a b a ...   which source is next is drawn; each gives its rows in order

as `datasets.interleave_datasets` does it. RandomState, because numpy promises its stream never to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np

from luthier.core.data.store import Ints

Stop = Literal["first_exhausted", "all_exhausted"]
_WORD: Final = 0xFFFFFFFF
_AT_ONCE: Final = 4096


def _random_state(seed: int, *more: int) -> np.random.RandomState:
    """A generator of its own for each list of numbers; the seed may have 64 bits."""
    return np.random.RandomState([seed & _WORD, (seed >> 32) & _WORD, *more])


def sample_rows(rows: int, sample: float | int | None, seed: int, number: int = 0) -> Ints:
    """Which of `rows` rows a source's `sample` takes, int64, in their own order; `number` is the source's.

    A float up to 1 is a part of them, anything else a number. More than there are: every row so often, and a random rest.
    """
    if sample is None:
        return np.arange(rows, dtype=np.int64)
    wanted = round(sample * rows) if isinstance(sample, float) and sample <= 1 else int(sample)
    if not rows:
        return np.empty(0, dtype=np.int64)
    wanted = max(wanted, 1)
    passes, rest = divmod(wanted, rows)
    some = np.sort(_random_state(seed, 1, number).permutation(rows)[:rest])
    return np.concatenate([np.tile(np.arange(rows), passes), some]).astype(np.int64)


def interleave_order(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Which source the next row comes from, without end: drawn in proportion to the weights."""
    for drawn in _draws(weights, seed):
        yield from drawn.tolist()


def interleave(lengths: Sequence[int], weights: Sequence[float], stop: Stop, seed: int) -> tuple[Ints, Ints]:
    """(source, row) of each place, int64, for sources of `lengths` rows, drawn as `interleave_order` says.

    It ends with the last row of the source that is used up first, or of the last one; a source that is used up before
    that begins anew. Raises ValueError for a source without rows.
    """
    if min(lengths) < 1:
        raise ValueError("a source without rows cannot be interleaved")
    draws = _draws(weights, seed)
    used_up = any if stop == "first_exhausted" else all
    parts: list[Ints] = []
    counts = np.zeros(len(lengths), dtype=np.int64)
    while not used_up(count >= length for count, length in zip(counts, lengths, strict=True)):
        parts.append(next(draws))
        counts += np.bincount(parts[-1], minlength=len(lengths))
    drawn = np.concatenate(parts)
    rows = np.empty(len(drawn), dtype=np.int64)
    ends = []
    for source, length in enumerate(lengths):
        places = np.flatnonzero(drawn == source)
        rows[places] = np.arange(len(places)) % length
        if len(places) >= length:
            ends.append(int(places[length - 1]) + 1)
    end = min(ends) if stop == "first_exhausted" else max(ends)
    return drawn[:end], rows[:end]


def _draws(weights: Sequence[float], seed: int) -> Iterator[Ints]:
    random = _random_state(seed, 2)
    bounds = np.cumsum(np.asarray(weights, dtype=np.float64))
    while True:
        points = random.random_sample(_AT_ONCE) * bounds[-1]
        # The last bound is no part of the draw, but a product may round up to it.
        yield np.minimum(np.searchsorted(bounds, points, side="right"), len(bounds) - 1).astype(np.int64)
