"""Presets: a name for a combination, laid under what the user wrote."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import ExitCode


@pytest.fixture
def frugal(shop: Any) -> Any:
    """`adapter: frugal` is `thin` of rank 4 with the patches `bits` and `again`, and an optimizer with a rate of its own."""
    shop.add("patches", "bits").add("patches", "again").add("patches", "extra")
    shop.add("optimizer", "other")
    config = {
        "adapter": {"use": "thin", "rank": 4, "init": "principal"},
        "patches": ["bits", "again"],
        "optimizer": {"use": "climb", "lr": 0.5},
    }
    return shop.preset("adapter", "frugal", config)


def patches(plan: Any) -> list[str]:
    return [step.method for step in plan.steps_in("patches")]


def test_a_preset_becomes_what_it_stands_for(frugal: Any) -> None:
    plan = frugal.plan(adapter="frugal")
    adapter = plan.step("adapter")
    assert (adapter.method, adapter.config["rank"], adapter.why) == ("thin", 4, "from the preset frugal")
    assert patches(plan) == ["again", "bits"]
    assert plan.step("optimizer").config["lr"] == 0.5


def test_options_beside_the_preset_reach_the_method_of_its_slot(frugal: Any) -> None:
    config = frugal.plan(adapter={"use": "frugal", "rank": 2}).step("adapter").config
    assert (config["rank"], config["init"]) == (2, "principal")


def test_an_unknown_option_beside_the_preset_is_said_at_its_place(frugal: Any) -> None:
    problems = frugal.refused(adapter={"use": "frugal", "rnk": 2}).problems
    assert [(problem.where, problem.fix) for problem in problems] == [("adapter.rnk", "did you mean `rank`?")]


def test_options_that_the_user_wrote_beside_auto_go_over_those_of_the_preset(frugal: Any) -> None:
    config = frugal.plan(adapter="frugal", optimizer={"momentum": 0.5}).step("optimizer").config
    assert (config["lr"], config["momentum"]) == (0.5, 0.5)
    assert frugal.plan(adapter="frugal", optimizer={"lr": 0.1}).step("optimizer").config["lr"] == 0.1


def test_naming_the_same_method_is_no_contradiction_and_keeps_both_kinds_of_options(frugal: Any) -> None:
    step = frugal.plan(adapter="frugal", optimizer={"use": "climb", "momentum": 0.5}).step("optimizer")
    assert (step.config["lr"], step.config["momentum"]) == (0.5, 0.5)
    assert step.why == "named in the configuration, with options from the preset frugal"


def test_a_contradiction_names_both_sides(frugal: Any) -> None:
    problems = frugal.refused(adapter="frugal", optimizer="other").problems
    assert len(problems) == 1
    assert problems[0].reason == (
        "adapter: frugal is a preset that needs optimizer: climb, but the configuration says optimizer: other"
    )
    assert problems[0].methods == ("adapter: frugal", "optimizer: other")


def test_patches_that_are_listed_are_taken_beside_those_of_the_preset(frugal: Any) -> None:
    assert patches(frugal.plan(adapter="frugal", patches=["extra", "bits"])) == ["again", "bits", "extra"]
    assert patches(frugal.plan(adapter="frugal", patches=[])) == ["again", "bits"]


def test_auto_fills_the_slots_that_the_preset_leaves_open(frugal: Any) -> None:
    plan = frugal.plan(adapter="frugal")
    assert plan.step("attention").why.startswith("auto:")
    assert plan.step("stage").why.startswith("auto:")


def test_auto_never_takes_a_preset(shop: Any) -> None:
    shop.preset("attention", "aaa", {"attention": "plain"})
    assert shop.plan().step("attention").why == "auto: the first candidate by priority (10)"


def test_a_preset_may_leave_a_slot_to_auto_with_options(shop: Any) -> None:
    shop.preset("adapter", "gentle", {"adapter": "auto", "optimizer": {"lr": 0.25}})
    plan = shop.plan(adapter={"use": "gentle", "rank": 2})
    assert plan.step("adapter").config["rank"] == 2
    assert plan.step("optimizer").config["lr"] == 0.25
    named = shop.plan(adapter="gentle", optimizer={"use": "climb", "momentum": 0.1}).step("optimizer")
    assert (named.config["lr"], named.config["momentum"]) == (0.25, 0.1)


def test_a_preset_that_says_nothing_of_its_own_slot_leaves_it_to_auto(shop: Any) -> None:
    shop.add("patches", "bits")
    shop.preset("adapter", "small", {"patches": ["bits"]})
    plan = shop.plan(adapter={"use": "small", "rank": 2})
    assert (plan.step("adapter").method, plan.step("adapter").config["rank"]) == ("thin", 2)
    assert patches(plan) == ["bits"]


def test_a_preset_of_patches_stands_among_patches(frugal: Any) -> None:
    frugal.preset("patches", "both", {"patches": ["bits", "again"]})
    assert patches(frugal.plan(patches=["both", "extra"])) == ["again", "bits", "extra"]
    problem = frugal.refused(patches=[{"use": "both", "every": 2}]).problems[0]
    assert "stands for 2 patches" in problem.reason


def test_two_presets_that_contradict_each_other_name_the_presets(frugal: Any) -> None:
    frugal.preset("attention", "swift", {"attention": "plain", "optimizer": "other"})
    problem = frugal.refused(adapter="frugal", attention="swift").problems[0]
    assert "from the preset" in problem.reason
    assert problem.fix == "keep one of the two presets"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"adapter": "thin", "modle": "x"}, "sets modle, which is no slot"),
        ({"adapter": 5}, "is wrong: adapter: must be a name"),
        ({"adapter": "frugal"}, "a preset names methods"),
        ({"adapter": "thin", "patches": [{"every": 2}]}, "patches[0]: names no patch"),
    ],
)
def test_a_preset_that_is_wrong_is_a_defect_of_its_plugin(frugal: Any, config: Any, said: str) -> None:
    refused = frugal.preset("adapter", "wrong", config).refused(adapter="wrong")
    assert any(said in problem.reason and "defect of luthier-workshop" in problem.reason for problem in refused.problems)
    assert refused.code == ExitCode.ENVIRONMENT


def test_a_preset_with_an_unknown_method_says_so(shop: Any) -> None:
    shop.preset("adapter", "old", {"adapter": "thick"})
    assert "no adapter method named 'thick'" in shop.refused(adapter="old").problems[0].reason
