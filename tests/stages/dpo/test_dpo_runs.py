"""Whole runs of `dpo`: it learns, every reference way gives the same run, and a stopped one goes on bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from luthier.core.errors import Interrupted
from tests.stages.running import goes_on_bit_for_bit, preferences, stopping

STEPS = 6


def test_it_learns_what_is_preferred(bench: Any) -> None:
    """Which of two answers is the better one stands in the prompt; margin and accuracy are of pairs that it never saw."""
    ran = bench.run(
        rows=preferences(96),
        data={"eval": 24},
        adapter={"use": "lora", "rank": 16},
        train={"max_steps": 30, "batch_tokens": 512, "eval_every": 10},
    )
    told = ran.told("evaluate")
    margins = [one["margin"] for one in told]
    assert margins == sorted(margins)
    assert margins[0] > 0
    assert told[-1]["rows"] == ran.results["eval_rows"] == 24
    assert ran.results["eval_accuracy"] > 0.9
    assert ran.results["eval_margin"] == pytest.approx(
        ran.results["eval_reward_chosen"] - ran.results["eval_reward_rejected"], rel=1e-5
    )
    assert ran.losses[0] == pytest.approx(math.log(2), rel=1e-5)  # nothing has moved: every reward is 0
    assert ran.told("step")[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert ran.results["eval_loss"] < 0.3


@pytest.mark.parametrize(
    ("adapter", "ways"),
    [
        ({"use": "lora", "rank": 4}, ("disabled", "copied", "precomputed", "model")),
        ({"use": "lora", "rank": 4, "init": "pissa"}, ("copied", "precomputed", "model")),
        ({"use": "full"}, ("precomputed", "model")),
    ],
    ids=["lora", "pissa", "full"],
)
def test_every_way_gives_the_same_run(bench: Any, adapter: Any, ways: tuple[str, ...]) -> None:
    runs = {
        how: bench.run(
            output=how, adapter=adapter, data={"eval": 4}, train={"max_steps": STEPS}, stage={"use": "dpo", "reference": how}
        )
        for how in ways
    }
    first = runs.pop(ways[0])
    assert first.plan.step("stage").reference == ways[0]
    for how, ran in runs.items():
        assert ran.plan.step("stage").reference == how
        assert ran.losses == pytest.approx(first.losses, rel=1e-4)
        for name in ("eval_loss", "eval_margin", "eval_accuracy"):
            assert ran.results[name] == pytest.approx(first.results[name], rel=1e-3), f"{name} of {how}"


@pytest.mark.parametrize(
    ("adapter", "how"),
    [
        ({"use": "lora", "rank": 4, "dropout": 0.1}, "disabled"),
        ({"use": "lora", "rank": 4, "init": "pissa"}, "copied"),
        ({"use": "dora", "rank": 4}, "copied"),
        ({"use": "lora", "rank": 4}, "precomputed"),
        ({"use": "full"}, "model"),
    ],
    ids=["disabled", "copied", "copied-dora", "precomputed", "model"],
)
def test_a_stopped_run_goes_on_bit_for_bit(bench: Any, adapter: Any, how: str) -> None:
    """The reference of the second half is that of the first: made before the checkpoint is loaded."""
    sections: dict[str, Any] = {
        "adapter": adapter,
        "data": {"eval": 4},
        "train": {"max_steps": STEPS, "accumulation": 2, "batch_tokens": 128},
        "stage": {"use": "dpo", "reference": how},
    }
    goes_on_bit_for_bit(bench, half=STEPS // 2, **sections)


def test_precomputing_tells_how_far_it_is_and_can_be_stopped(bench: Any) -> None:
    sections: dict[str, Any] = {
        "rows": preferences(40),
        "data": {"eval": 6},
        "stage": {"use": "dpo", "reference": "precomputed"},
        "train": {"max_steps": 2, "batch_tokens": 128},
    }
    ran = bench.run(**sections)
    told = [one for one in ran.told("phase") if one.get("name") == "reference"]
    done = [one["rows"] for one in told]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == told[-1]["of"] < 40, "only the rows of two steps, and the held-out ones, are needed"

    def midway(event: Any) -> bool:
        return event.kind == "phase" and event.values.get("name") == "reference" and event.values["rows"]

    with pytest.raises(Interrupted, match="reference"):
        bench.run(output="stopped", **stopping(midway), **sections)


def test_the_plan_and_the_run_say_which_way_it_is(bench: Any) -> None:
    ran = bench.run(train={"max_steps": 1})
    assert ran.plan.step("stage").reference == "disabled"
    assert any("reference: the same model with the adapter off" in one.message for one in ran.events)
