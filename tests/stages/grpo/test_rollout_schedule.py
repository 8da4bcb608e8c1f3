"""Which prompts each micro-batch is about: every prompt once an epoch, groups side by side, the same on every machine."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from luthier.plugins._trl.rollout_schedule import RolloutSchedule


def schedule(rows: int = 10, **options: Any) -> RolloutSchedule:
    given = {"longest": 20, "batch_tokens": 100, "num_generations": 3, "prompts_per_step": 4}
    return RolloutSchedule(rows, **(given | options))


def test_answers_of_a_micro_batch_fit_and_divide_the_step() -> None:
    # 12 answers a step, 5 of 20 tokens fit into 100: the greatest number that divides 12 is 4.
    made = schedule(max_steps=1)
    assert (made.answers, made.accumulation, made.oversized) == (4, 3, False)
    assert (schedule(batch_tokens=1000).answers, schedule(batch_tokens=1000).accumulation) == (12, 1)
    small = schedule(batch_tokens=10)
    assert (small.answers, small.accumulation, small.oversized) == (1, 12, True)


def test_every_micro_batch_of_a_rollout_names_all_its_prompts() -> None:
    made = schedule(max_steps=4, steps_per_generation=2, num_iterations=1)
    batches = list(made)
    assert len(batches) == len(made) == 4 * made.accumulation
    first, second = batches[: 2 * made.accumulation], batches[2 * made.accumulation :]
    assert all(batch == first[0] for batch in first)
    assert all(batch == second[0] for batch in second)
    assert first[0] != second[0]
    groups = [first[0][at : at + 3] for at in range(0, len(first[0]), 3)]
    assert len(groups) == 8
    assert all(len(set(group)) == 1 for group in groups)


def test_an_epoch_has_every_prompt_once() -> None:
    made = schedule(rows=10, prompts_per_step=4, epochs=2)
    assert made.steps == 5
    prompts = [row for number in range(5) for row in made.rollout(number).tolist()]
    assert Counter(prompts) == dict.fromkeys(range(10), 2)
    assert Counter(prompts[:10]) == dict.fromkeys(range(10), 1)
    assert prompts[:10] != prompts[10:]
    assert [made.epoch_of(step) for step in (0, 1, 5)] == [0, 0.4, 2]


def test_prompts_fewer_than_a_rollout_are_taken_again() -> None:
    assert Counter(schedule(rows=2).rollout(0).tolist()) == {0: 2, 1: 2}


def test_iterations_go_over_the_same_rollout() -> None:
    made = schedule(rows=8, prompts_per_step=4, num_iterations=3, epochs=1)
    assert made.steps == 2 * 3
    batches = list(made)
    size = 3 * made.accumulation
    assert all(batch == batches[0] for batch in batches[:size])
    assert batches[size] != batches[0]
    assert made.epoch_of(1) == 0.5


def test_the_seed_decides_the_order() -> None:
    def order(**options: Any) -> list[int]:
        return schedule(rows=50, **options).rollout(0).tolist()

    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert order(seed=3 + (1 << 32)) != order(seed=3)


def test_no_prompts() -> None:
    with pytest.raises(ValueError, match="needs prompts"):
        schedule(rows=0)
