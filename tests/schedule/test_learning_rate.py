"""Learning-rate schedules against transformers' own, against closed formulas, and at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.schedule import (
    OptimizerOptions,
    Schedule,
    build_schedule,
    clipped_warmup,
    learning_rate_factor,
    warmup_steps,
)

STEPS = 50


def rates(options: object, steps: int, lr: float = 1.0) -> list[float]:
    """The rate of every optimizer step, as torch's scheduler gives it."""
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = build_schedule(optimizer, options, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def reference(make: Callable[[Any], Any], steps: int) -> list[float]:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def theirs(schedule: Schedule, warmup: int, floor: float, decay: int) -> Callable[[Any], Any]:
    import transformers.optimization as hf

    def make(optimizer: Any) -> Any:
        if schedule == "linear":
            return hf.get_linear_schedule_with_warmup(optimizer, warmup, STEPS)
        if schedule == "cosine":
            return hf.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, STEPS, min_lr_rate=floor)
        if schedule == "wsd":
            return hf.get_wsd_schedule(
                optimizer, warmup, decay, num_training_steps=STEPS, min_lr_ratio=floor, decay_type="linear"
            )
        return hf.get_constant_schedule_with_warmup(optimizer, warmup)

    return make


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize(
    ("schedule", "floor"),
    [("linear", 0.0), ("cosine", 0.0), ("cosine", 0.1), ("constant", 0.0), ("wsd", 0.0), ("wsd", 0.1)],
)
def test_after_the_warm_up_rates_are_those_of_transformers(schedule: Schedule, floor: float, warmup: int) -> None:
    options = OptimizerOptions(schedule=schedule, warmup=warmup, min_lr_ratio=floor, decay=0.2)
    ours = rates(options, STEPS)
    expected = reference(theirs(schedule, warmup, floor, decay=10), STEPS)
    assert ours[warmup:] == pytest.approx(expected[warmup:], abs=1e-12)


def test_linear_decay_to_a_floor_is_a_straight_line() -> None:
    ours = rates(OptimizerOptions(schedule="linear", warmup=0, min_lr_ratio=0.25), 4)
    assert ours == pytest.approx([1.0, 0.8125, 0.625, 0.4375])
    assert learning_rate_factor(4, OptimizerOptions(schedule="linear", warmup=0, min_lr_ratio=0.25), 4) == 0.25


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "wsd"])
def test_the_warm_up_rises_in_equal_steps_and_its_first_step_moves(schedule: Schedule) -> None:
    ours = rates(OptimizerOptions(schedule=schedule, warmup=4), STEPS)
    assert ours[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1, 10, 1000])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_every_step_of_any_run_moves_and_none_goes_above_the_peak(schedule: Schedule, warmup: float, steps: int) -> None:
    ours = rates(OptimizerOptions(schedule=schedule, warmup=warmup), steps, lr=0.5)
    assert len(ours) == steps
    assert all(0 < rate <= 0.5 for rate in ours)


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [
        (0, 100, 0),
        (0.03, 100, 3),
        (0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (0.035, 100, 4),
        (0.001, 100, 1),
        (0.03, 1, 1),
        (1, 100, 1),
        (20, 100, 20),
        (20, 10, 10),
    ],
)
def test_the_warm_up_in_steps(warmup: float, steps: int, expected: int) -> None:
    assert warmup_steps(OptimizerOptions(warmup=warmup), steps) == expected


def test_every_whole_percentage_of_a_hundred_steps_is_that_many_steps() -> None:
    assert [warmup_steps(OptimizerOptions(warmup=part / 100), 100) for part in range(100)] == list(range(100))


def test_a_warm_up_as_long_as_the_run_never_decays() -> None:
    ours = rates(OptimizerOptions(schedule="cosine", warmup=1000), 4)
    assert ours == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize(("warmup", "told"), [(0.5, False), (1, False), (8, False), (9, True), (20, True)])
def test_a_warm_up_longer_than_the_run_is_told(warmup: float, told: bool) -> None:
    options = OptimizerOptions(lr=1e-3, warmup=warmup)
    text = clipped_warmup(options, 8)
    assert (text is not None) == told
    if text is not None:
        assert f"{warmup} steps and the run has 8" in text
        assert f"{max(rates(options, 8, lr=1e-3)):.2e}" in text  # the highest rate that the run really has
    assert clipped_warmup(object(), 8) is None


def test_a_run_of_one_step_without_warm_up_takes_the_peak() -> None:
    for schedule in ("linear", "cosine", "constant", "wsd"):
        assert rates(OptimizerOptions(schedule=schedule, warmup=0), 1) == [1.0]  # type: ignore[arg-type]


def test_wsd_is_constant_until_its_last_part() -> None:
    ours = rates(OptimizerOptions(schedule="wsd", warmup=0, decay=0.2), 20)
    assert ours[:17] == [1.0] * 17  # the first decaying step still starts at the peak
    assert ours[17:] == pytest.approx([0.75, 0.5, 0.25])


def test_wsd_with_a_decay_that_reaches_into_the_warm_up_starts_after_it() -> None:
    ours = rates(OptimizerOptions(schedule="wsd", warmup=5, decay=1.0), 10)
    assert ours[5:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_the_half_of_a_cosine_is_half_way() -> None:
    assert learning_rate_factor(50, OptimizerOptions(schedule="cosine", warmup=0), 100) == pytest.approx(0.5)
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    assert learning_rate_factor(25, OptimizerOptions(schedule="cosine", warmup=0), 100) == pytest.approx(quarter)


def test_steps_beyond_the_end_stay_at_the_floor() -> None:
    for schedule in ("linear", "cosine", "wsd"):
        options = OptimizerOptions(schedule=schedule, warmup=0, min_lr_ratio=0.1)  # type: ignore[arg-type]
        assert learning_rate_factor(11, options, 10) == pytest.approx(0.1)


def test_options_of_another_kind_train_at_the_rate_the_optimizer_was_built_with() -> None:
    assert rates(object(), 5, lr=0.3) == [0.3] * 5


def test_every_group_follows_its_own_rate() -> None:
    import torch

    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    scheduler = build_schedule(optimizer, OptimizerOptions(schedule="linear", warmup=0), 4)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75, 0.075])


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    import torch

    def make() -> tuple[Any, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, build_schedule(optimizer, OptimizerOptions(schedule="cosine", warmup=0.1), 20)

    optimizer, scheduler = make()
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    again, resumed = make()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for one, schedule in ((optimizer, scheduler), (again, resumed)):
        one.step()
        schedule.step()
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert again.param_groups[0]["lr"] == pytest.approx(
        learning_rate_factor(8, OptimizerOptions(schedule="cosine", warmup=0.1), 20)
    )
