"""Best fit decreasing against a plain implementation of it, and against the bounds that the literature gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data.packing import pack


def reference(lengths: list[int], capacity: int) -> list[list[int]]:
    """The definition, row by row: of all bins that have room, the one with the least."""
    bins: list[list[int]] = []
    free: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = [place for place, room in enumerate(free) if room >= lengths[row]]
        if fitting:
            place = min(fitting, key=lambda place: free[place])
            bins[place].append(row)
            free[place] -= lengths[row]
        else:
            bins.append([row])
            free.append(capacity - lengths[row])
    return bins


def fewest(lengths: list[int], capacity: int) -> int:
    """The fewest bins possible, by trying everything: for a handful of rows."""
    best = len(lengths)

    def place(row: int, free: list[int]) -> None:
        nonlocal best
        if len(free) >= best:
            return
        if row == len(lengths):
            best = len(free)
            return
        for index in {room: index for index, room in enumerate(free) if room >= lengths[row]}.values():
            place(row + 1, [room - lengths[row] * (at == index) for at, room in enumerate(free)])
        place(row + 1, [*free, capacity - lengths[row]])

    place(0, [])
    return best


def packed(lengths: list[int], capacity: int) -> list[list[int]]:
    return [one.tolist() for one in pack(np.array(lengths, dtype=np.int64), capacity)]


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(1, 120), max_size=150), capacity=st.integers(1, 400))
def test_every_row_once_and_no_bin_too_full(lengths: list[int], capacity: int) -> None:
    bins = packed(lengths, capacity)
    assert sorted(row for one in bins for row in one) == list(range(len(lengths)))
    for one in bins:
        assert sum(lengths[row] for row in one) <= capacity or len(one) == 1
        assert [lengths[row] for row in one] == sorted((lengths[row] for row in one), reverse=True)
    assert len(bins) == len(reference(lengths, capacity))
    assert packed(lengths, capacity) == bins


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=400), capacity=st.sampled_from([400, 512, 1000]))
def test_the_fill_of_every_bin_is_the_reference_s(lengths: list[int], capacity: int) -> None:
    """Which of several bins with the same room is taken makes no difference to how full they become."""

    def fills(bins: list[list[int]]) -> list[list[int]]:
        return sorted([lengths[row] for row in one] for one in bins)

    found, expected = fills(packed(lengths, capacity)), fills(reference(lengths, capacity))
    assert len(found) == len(expected)
    assert sorted(map(sum, found)) == sorted(map(sum, expected))


@settings(max_examples=80, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9), capacity=st.integers(20, 40))
def test_at_most_eleven_ninths_of_the_fewest_and_one(lengths: list[int], capacity: int) -> None:
    """The bound of first fit decreasing, 11/9 OPT + 6/9 (Dosa 2007), holds for best fit decreasing too (Johnson 1973)."""
    assert len(packed(lengths, capacity)) <= math.floor(11 / 9 * fewest(lengths, capacity) + 1)


@pytest.mark.parametrize("capacity", [2048, 8192])
def test_a_hundred_thousand_rows(capacity: int) -> None:
    random = np.random.RandomState(0)
    lengths = np.clip(random.lognormal(5, 0.8, 100_000).astype(np.int64), 5, 2048)
    bins = pack(lengths, capacity)
    assert sum(map(len, bins)) == len(lengths)
    assert np.array_equal(np.sort(np.concatenate(bins)), np.arange(len(lengths)))
    sums = np.array([lengths[one].sum() for one in bins])
    assert sums.max() <= capacity
    # No packing has fewer bins than all tokens fill. With so many short rows best fit is hardly above it.
    least = math.ceil(lengths.sum() / capacity)
    assert least <= len(bins) <= 1.01 * least


def test_by_hand() -> None:
    # 8 and 7 open bins of 10, 3 fills that of 7, the first 2 that of 8, and the other one opens a third.
    assert packed([2, 8, 3, 7, 2], 10) == [[1, 0], [3, 2], [4]]
    assert packed([], 10) == []
    assert packed([12, 10, 1], 10) == [[0], [1], [2]]
    # First fit would put 3 beside 6 and leave 4 and 2 apart; the best fit for 3 is the bin of 7.
    assert packed([6, 7, 4, 3], 10) == [[1, 3], [0, 2]]
