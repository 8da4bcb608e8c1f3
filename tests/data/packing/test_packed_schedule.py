"""The batch schedule with packing: sums instead of rectangles, the same promises about epochs, seeds and steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data import BatchSchedule

some_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=200)


@settings(max_examples=60, deadline=None)
@given(
    lengths=some_lengths,
    batch_tokens=st.integers(8, 400),
    accumulation=st.integers(1, 4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**63),
)
def test_every_row_once_per_epoch_within_the_limit(
    lengths: list[int], batch_tokens: int, accumulation: int, epochs: int, seed: int
) -> None:
    options = {"batch_tokens": batch_tokens, "accumulation": accumulation, "epochs": epochs, "seed": seed, "packing": True}
    plan = BatchSchedule(lengths, **options)  # type: ignore[arg-type]
    flat = [row for batch in plan.batches for row in batch]
    for epoch in range(epochs):
        assert sorted(flat[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in batch) for batch in plan.batches]
    assert all(total <= batch_tokens or len(batch) == 1 for total, batch in zip(sums, plan.batches, strict=True))
    assert plan.oversized == sum(length > batch_tokens for length in lengths)
    assert plan.steps == math.ceil(len(plan.batches) / accumulation)
    assert plan.padding == 0
    assert plan.tokens == epochs * sum(lengths)
    assert plan.efficiency == pytest.approx(plan.tokens / sum(max(total, batch_tokens) for total in sums))
    assert plan.epoch_of(plan.steps) == epochs
    assert BatchSchedule(np.array(lengths), **options).batches == plan.batches  # type: ignore[arg-type]


def test_efficiency_by_hand() -> None:
    """10 and 8 + 2 fill two batches, 7 stands alone with 3 free, 12 is oversized and counts as full: 39 of 42."""
    plan = BatchSchedule([10, 8, 2, 7, 12], batch_tokens=10, packing=True)
    assert sorted(map(sorted, plan.batches)) == [[0], [1, 2], [3], [4]]
    assert (plan.efficiency, plan.oversized) == (39 / 42, 1)


@settings(max_examples=30, deadline=None)
@given(lengths=some_lengths, max_steps=st.integers(1, 40), accumulation=st.integers(1, 3))
def test_max_steps_decides(lengths: list[int], max_steps: int, accumulation: int) -> None:
    plan = BatchSchedule(lengths, batch_tokens=300, accumulation=accumulation, seed=1, max_steps=max_steps, packing=True)
    assert (plan.steps, len(plan)) == (max_steps, max_steps * accumulation)
    long = BatchSchedule(lengths, batch_tokens=300, epochs=len(plan), seed=1, packing=True)
    assert plan.batches == long.batches[: len(plan)]


def test_almost_nothing_stays_empty_and_the_order_is_not_by_length() -> None:
    lengths = np.random.RandomState(0).randint(5, 500, 30_000)
    plan = BatchSchedule(lengths, batch_tokens=2048, epochs=2, packing=True)
    assert plan.efficiency > 0.99
    half = len(BatchSchedule(lengths, batch_tokens=2048, packing=True))
    assert plan.batches[:half] != plan.batches[half:]
    longest = [int(lengths[batch].max()) for batch in plan.batches]
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.1
    # Who meets whom is drawn anew in each epoch: hardly a pair of rows stands together in both.
    pairs = [
        {tuple(sorted(batch[:2])) for batch in part if len(batch) > 1} for part in (plan.batches[:half], plan.batches[half:])
    ]
    assert len(pairs[0] & pairs[1]) < 0.01 * half


def test_a_data_loader_takes_it_as_batch_sampler() -> None:
    from torch.utils.data import DataLoader

    plan = BatchSchedule([3, 5, 2, 8], batch_tokens=10, seed=2, packing=True)
    loader = DataLoader(["a", "b", "c", "d"], batch_sampler=plan, collate_fn=list)  # type: ignore[arg-type,var-annotated]
    assert list(loader) == [["abcd"[row] for row in batch] for batch in plan.batches]
