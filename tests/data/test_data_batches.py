"""The batch schedule's promises, for any rows; and the tensors that batches become."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data import BatchSchedule, collate

some_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=200)


@settings(max_examples=60, deadline=None)
@given(
    lengths=some_lengths,
    batch_tokens=st.integers(8, 400),
    accumulation=st.integers(1, 5),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 2**63),
)
def test_every_row_once_per_epoch_within_the_limit(
    lengths: list[int], batch_tokens: int, accumulation: int, epochs: int, seed: int
) -> None:
    plan = BatchSchedule(lengths, batch_tokens=batch_tokens, accumulation=accumulation, epochs=epochs, seed=seed)
    flat = [row for batch in plan.batches for row in batch]
    for epoch in range(epochs):
        assert sorted(flat[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))
    assert len(flat) == epochs * len(lengths)
    for batch in plan.batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) * longest <= batch_tokens or len(batch) == 1
    assert plan.oversized == sum(length > batch_tokens for length in lengths)
    assert plan.steps == math.ceil(len(plan.batches) / accumulation)
    assert len(plan) == len(plan.batches)
    assert plan.epoch_of(0) == 0
    assert plan.epoch_of(plan.steps) == epochs
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in plan.batches)
    assert plan.padding == pytest.approx((padded - epochs * sum(lengths)) / padded, abs=1e-12)
    assert plan.tokens == epochs * sum(lengths)
    again = BatchSchedule(np.array(lengths), batch_tokens=batch_tokens, accumulation=accumulation, epochs=epochs, seed=seed)
    assert again.batches == plan.batches


@settings(max_examples=40, deadline=None)
@given(lengths=some_lengths, epochs=st.floats(0.05, 3.5), seed=st.integers(0, 9))
def test_a_fraction_of_an_epoch(lengths: list[int], epochs: float, seed: int) -> None:
    plan = BatchSchedule(lengths, batch_tokens=300, epochs=epochs, seed=seed)
    whole = BatchSchedule(lengths, batch_tokens=300, epochs=math.ceil(epochs), seed=seed).batches
    assert plan.batches == whole[: len(plan)]
    before = len(BatchSchedule(lengths, batch_tokens=300, epochs=math.floor(epochs), seed=seed)) if epochs >= 1 else 0
    part = (epochs - math.floor(epochs)) * (len(whole) - before)
    assert before + part - 1e-5 <= len(plan) < before + part + 1
    assert len(plan) >= 1
    counts = Counter(row for batch in plan.batches for row in batch)
    assert set(counts.values()) <= {math.floor(epochs), math.ceil(epochs)}


@pytest.mark.parametrize(("epochs", "batches"), [(0.2, 1), (0.4, 2), (0.6, 3), (0.8, 4), (1.2, 6), (0.5, 3), (2.8, 14)])
def test_a_decimal_fraction_means_what_it_says(epochs: float, batches: int) -> None:
    """Five batches an epoch; 1 - 0.8 is not quite 0.2 in binary."""
    assert len(BatchSchedule([100] * 5, batch_tokens=100, epochs=epochs)) == batches


@settings(max_examples=40, deadline=None)
@given(lengths=some_lengths, max_steps=st.integers(1, 60), accumulation=st.integers(1, 3))
def test_max_steps_decides(lengths: list[int], max_steps: int, accumulation: int) -> None:
    plan = BatchSchedule(lengths, batch_tokens=300, accumulation=accumulation, epochs=1.5, seed=1, max_steps=max_steps)
    assert plan.steps == max_steps
    assert len(plan) == max_steps * accumulation
    long = BatchSchedule(lengths, batch_tokens=300, epochs=len(plan), seed=1)
    assert plan.batches == long.batches[: len(plan)]


def test_rows_of_one_length_fill_their_batches() -> None:
    plan = BatchSchedule([10] * 1000, batch_tokens=100)
    assert [len(batch) for batch in plan.batches] == [10] * 100
    assert (plan.padding, plan.steps_per_epoch) == (0.0, 100)


def test_epochs_and_seeds_differ_and_order_is_not_by_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, 3000)
    plan = BatchSchedule(lengths, batch_tokens=2048, epochs=2, seed=0)
    flat = [row for batch in plan.batches for row in batch]
    assert flat[:3000] != flat[3000:]
    assert BatchSchedule(lengths, batch_tokens=2048, epochs=2, seed=1).batches != plan.batches
    longest = [int(lengths[batch].max()) for batch in plan.batches]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.1
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.2
    # Batches of as many rows in a random order pad far more.
    rows = max(1, round(3000 / (len(plan) / 2)))
    blocks = [lengths[begin : begin + rows] for begin in range(0, 3000, rows)]
    random_padding = 1 - lengths.sum() / sum(len(block) * block.max() for block in blocks)
    assert plan.padding < 0.1 < random_padding


def test_steps_and_epochs_with_accumulation() -> None:
    plan = BatchSchedule([10] * 9, batch_tokens=10, accumulation=2, epochs=2)
    assert (len(plan), plan.steps, plan.steps_per_epoch) == (18, 9, 5)
    assert [plan.epoch_of(step) for step in (0, 3, 9, 99)] == [0, 6 / 9, 2, 2]


@pytest.mark.parametrize(
    ("lengths", "options"),
    [([], {}), ([3, 0], {}), ([3], {"epochs": 0}), ([3], {"max_steps": 0}), ([3], {"accumulation": 0})],
)
def test_what_cannot_be_scheduled(lengths: list[int], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        BatchSchedule(lengths, **{"batch_tokens": 8} | options)


def test_a_data_loader_takes_it_as_batch_sampler() -> None:
    from torch.utils.data import DataLoader

    plan = BatchSchedule([3, 5, 2, 8], batch_tokens=10, seed=2)
    loader = DataLoader(["a", "b", "c", "d"], batch_sampler=plan, collate_fn=list)  # type: ignore[arg-type,var-annotated]
    assert list(loader) == [["abcd"[row] for row in batch] for batch in plan.batches]


def test_collate_pads_on_the_right() -> None:
    import torch

    def example(ids: list[int], labels: list[int]) -> Any:
        return {"input_ids": np.array(ids), "labels": np.array(labels)}

    batch = collate([example([5, 6, 7], [-100, 6, 7]), example([8], [-100])], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
