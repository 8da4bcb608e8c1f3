"""Sampling and interleaving move row numbers: each property is counted by hand or taken from `datasets`."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data.mixing import interleave, interleave_order, sample_rows


def test_no_sample_is_every_row() -> None:
    assert sample_rows(5, None, seed=3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "sample", "taken"), [(200, 0.1, 20), (200, 50, 50), (200, 1.0, 200), (200, 200, 200), (3, 0.01, 1), (7, 3.0, 3)]
)
def test_a_part_or_a_number_without_repeats(rows: int, sample: float | int, taken: int) -> None:
    found = sample_rows(rows, sample, seed=1)
    assert len(found) == len(set(found.tolist())) == taken
    assert found.tolist() == sorted(found.tolist())
    assert set(found.tolist()) <= set(range(rows))


def test_more_than_there_are_is_whole_passes_and_a_random_rest() -> None:
    found = sample_rows(10, 34, seed=1)
    counts = Counter(found.tolist())
    assert found[:30].tolist() == list(range(10)) * 3
    assert sorted(counts.values()) == [3] * 6 + [4] * 4


def test_a_sample_depends_on_the_seed_and_on_which_source_it_is() -> None:
    draws = [sample_rows(1000, 100, seed, number).tolist() for seed, number in ((0, 0), (1, 0), (0, 1), (2**40, 0))]
    assert sample_rows(1000, 100, 0, 0).tolist() == draws[0]
    assert len({tuple(draw) for draw in draws}) == 4
    # Random, and not the first rows: 100 of 1000 have a mean of 499.5, with a standard deviation of 27.
    assert all(abs(np.mean(draw) - 499.5) < 5 * 27 for draw in draws)


def test_a_sample_of_nothing_is_nothing() -> None:
    assert sample_rows(0, 5, seed=0).tolist() == []


def test_sources_are_drawn_in_proportion_to_their_weights() -> None:
    draws = Counter(islice(interleave_order([6.0, 3.0, 1.0], seed=5), 100_000))
    for source, part in enumerate((0.6, 0.3, 0.1)):
        # Five standard deviations of a binomial.
        assert abs(draws[source] / 100_000 - part) < 5 * (part * (1 - part) / 100_000) ** 0.5


def test_the_order_without_end_is_that_of_the_places() -> None:
    sources, _ = interleave([5000, 9000], [2.0, 1.0], "all_exhausted", seed=9)
    assert len(sources) > 4096
    assert sources.tolist() == list(islice(interleave_order([2.0, 1.0], seed=9), len(sources)))
    assert sources[:500].tolist() != list(islice(interleave_order([2.0, 1.0], seed=8), 500))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.2, 5.0), min_size=4, max_size=4),
    stop=st.sampled_from(["first_exhausted", "all_exhausted"]),
    seed=st.integers(0, 2**63),
)
def test_it_ends_where_datasets_ends(lengths: list[int], weights: list[float], stop: Any, seed: int) -> None:
    """`datasets.interleave_datasets`, replayed on the very draws: the same rows, in the same order, to the same end."""
    weights = weights[: len(lengths)]
    sources, rows = interleave(lengths, weights, stop, seed)
    used, begun, expected = [False] * len(lengths), [0] * len(lengths), []
    for source in interleave_order(weights, seed):
        # From _interleave_map_style_datasets of datasets 5.2.
        if (any if stop == "first_exhausted" else all)(used):
            break
        expected.append((source, begun[source]))
        begun[source] += 1
        if begun[source] >= lengths[source]:
            used[source] = True
            begun[source] = 0
    assert list(zip(sources.tolist(), rows.tolist(), strict=True)) == expected


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
def test_as_many_rows_of_each_as_datasets_takes(stop: Any) -> None:
    """Other draws than numpy's default_rng gives `datasets`, so the counts agree within what chance explains."""
    datasets = pytest.importorskip("datasets")
    lengths, parts = (3000, 1000), (0.7, 0.3)
    made = [datasets.Dataset.from_dict({"source": [number] * length}) for number, length in enumerate(lengths)]
    theirs = datasets.interleave_datasets(made, probabilities=list(parts), seed=1, stopping_strategy=stop)
    ours, _ = interleave(lengths, parts, stop, seed=1)
    theirs = np.array(theirs["source"])
    # The source that decides gives all its rows in both; the other one about length * (ratio of the weights).
    for found in (ours, theirs):
        counts = np.bincount(found, minlength=2)
        decides = 1 if stop == "first_exhausted" else 0
        assert counts[decides] == lengths[decides]
        expected = lengths[decides] * parts[1 - decides] / parts[decides]
        assert abs(counts[1 - decides] - expected) < 5 * (expected / parts[decides]) ** 0.5


def test_rows_begin_anew_when_all_are_to_be_used_up() -> None:
    sources, rows = interleave([3, 50], [1.0, 1.0], "all_exhausted", seed=0)
    short = rows[sources == 0].tolist()
    assert short == [number % 3 for number in range(len(short))]
    assert len(short) > 6
    assert rows[sources == 1].tolist() == list(range(50))
    assert (sources[-1], rows[-1]) == (1, 49)


def test_a_source_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="without rows"):
        interleave([3, 0], [1.0, 1.0], "all_exhausted", seed=0)
