"""What `auto` takes, and the reasons it gives."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.contracts import Support
from luthier.core.errors import ExitCode
from luthier.core.options import NoOptions
from luthier.core.traits import any_of


def reasons(plan: Any) -> dict[str, str]:
    return {entry.method: entry.reason for entry in plan.rejected}


def test_the_highest_priority_that_fits_is_taken(shop: Any) -> None:
    plan = shop.plan()
    assert plan.step("adapter").method == "thin"
    assert plan.step("adapter").why == "auto: the first candidate by priority (10)"
    assert reasons(plan) == {"whole": "thin comes first (priority 10 against 5)"}


def test_ties_go_by_name_and_say_so(shop: Any) -> None:
    shop.add("adapter", "able", priority=10)
    plan = shop.plan()
    assert plan.step("adapter").method == "able"
    assert reasons(plan)["thin"] == "able comes first (by name, at the same priority 10)"


@pytest.mark.parametrize("priority", [0, -5])
def test_priority_zero_or_less_is_taken_only_when_named(shop: Any, priority: int) -> None:
    shop.add("attention", "shy", priority=priority)
    shop.add("patches", "quiet", priority=priority)
    plan = shop.plan()
    assert plan.step("attention").method == "plain"
    assert not plan.steps_in("patches")
    assert "shy" not in reasons(plan)
    assert shop.taken(attention="shy")["attention"] == "shy"


def test_a_candidate_that_is_passed_over_leaves_its_reason(shop: Any) -> None:
    shop.add("adapter", "best", priority=99, supports=lambda *args: Support.no("this model has no norms"))
    plan = shop.plan()
    assert plan.step("adapter").why == "auto: the first candidate that fits, after best"
    assert reasons(plan)["best"] == "adapter: best says no: this model has no norms"
    assert [entry.method for entry in plan.rejected] == ["best", "whole"]


def test_a_reason_that_a_method_gives_for_itself_is_kept(shop: Any) -> None:
    shop.add("attention", "quick", priority=99, supports=lambda *args: Support.yes("measured twice as fast"))
    assert shop.plan().step("attention").why.endswith("; measured twice as fast")


def test_options_beside_auto_reach_the_choice(shop: Any) -> None:
    assert shop.plan(optimizer={"lr": 1e-3}).step("optimizer").config["lr"] == 1e-3


def test_options_beside_auto_steer_the_choice_to_those_that_take_them(shop: Any) -> None:
    shop.add("optimizer", "rigid", priority=99, config=NoOptions)
    plan = shop.plan(optimizer={"lr": 1e-3})
    assert plan.step("optimizer").method == "climb"
    assert reasons(plan)["rigid"] == "optimizer.lr: unknown key"
    assert shop.plan().step("optimizer").method == "rigid"


def test_a_misspelt_option_beside_auto_is_said_as_such(shop: Any) -> None:
    problem = shop.refused(optimizer={"momentun": 0.5}).problems[0]
    assert (problem.where, problem.reason, problem.fix) == (
        "optimizer.momentun",
        "unknown key",
        "did you mean `momentum`?",
    )


def test_options_beside_auto_that_no_candidate_takes_name_them_all(shop: Any) -> None:
    problem = shop.refused(adapter={"init": "zerro"}).problems[0]
    assert "thin: adapter.init: must be one of zero, principal" in problem.reason
    assert "whole: adapter.init: unknown key" in problem.reason
    assert "did you mean `zero`?" in problem.fix


def test_options_beside_automatic_patches_that_no_patch_takes_are_a_problem(shop: Any) -> None:
    shop.add("patches", "simple", priority=1)
    assert [step.method for step in shop.plan(patches="auto").steps_in("patches")] == ["simple"]
    assert "every" in str(shop.refused(patches={"use": "auto", "every": 2}))


def test_patches_take_every_candidate_that_fits(shop: Any) -> None:
    shop.add("patches", "one", priority=5)
    shop.add("patches", "two", priority=3)
    shop.add("patches", "cuda-only", priority=9, requires=(any_of("device.cuda"),))
    plan = shop.plan()
    assert [step.method for step in plan.steps_in("patches")] == ["one", "two"]
    assert plan.steps_in("patches")[0].why == "auto: fits this model, machine and combination"
    assert "patches: cuda-only needs device.cuda" in reasons(plan)["cuda-only"]


def test_of_two_patches_with_one_claim_the_first_is_taken(shop: Any) -> None:
    shop.add("patches", "second", priority=3, claims=frozenset({"loss.forward"}))
    shop.add("patches", "first", priority=5, claims=frozenset({"loss.forward"}))
    plan = shop.plan()
    assert [step.method for step in plan.steps_in("patches")] == ["first"]
    assert "both claim loss.forward" in reasons(plan)["second"]


def test_a_patch_that_needs_a_later_patch_is_taken_with_it(shop: Any) -> None:
    shop.add("patches", "roof", priority=9, requires=(any_of("house.walls"),))
    shop.add("patches", "walls", priority=1, provides=frozenset({"house.walls"}))
    plan = shop.plan()
    assert {step.method for step in plan.steps_in("patches")} == {"roof", "walls"}
    assert "roof" not in reasons(plan)


def test_auto_beside_named_patches_adds_what_fits_and_nothing_twice(shop: Any) -> None:
    shop.add("patches", "named", priority=5)
    shop.add("patches", "more", priority=3)
    plan = shop.plan(patches=["named", "auto"])
    whys = {step.method: step.why for step in plan.steps_in("patches")}
    assert whys == {"named": "named in the configuration", "more": "auto: fits this model, machine and combination"}


def test_an_empty_list_of_patches_takes_none(shop: Any) -> None:
    shop.add("patches", "eager", priority=5)
    assert not shop.plan(patches=[]).steps_in("patches")


def test_a_candidate_never_breaks_a_named_method(shop: Any) -> None:
    shop.add("adapter", "loud", priority=99, provides=frozenset({"noise"}))
    shop.add("optimizer", "quiet", conflicts=frozenset({"noise"}))
    plan = shop.plan(optimizer="quiet")
    assert plan.step("adapter").method == "thin"
    assert "optimizer: quiet cannot be combined with noise" in reasons(plan)["loud"]


def test_a_candidate_that_a_named_method_needs_goes_before_priority(shop: Any) -> None:
    shop.add("optimizer", "matrix", requires=(any_of("params.full_rank"),))
    plan = shop.plan(optimizer="matrix")
    assert plan.step("adapter").method == "whole"
    assert plan.step("adapter").why == "auto: optimizer: matrix needs params.full_rank, which this provides"
    assert reasons(plan)["thin"] == "whole comes first: optimizer: matrix needs params.full_rank"


def test_a_stage_may_need_what_a_later_slot_provides(shop: Any) -> None:
    shop.add("stage", "compare", priority=99, requires=(any_of("params.full_rank"),))
    taken = shop.taken()
    assert (taken["stage"], taken["adapter"]) == ("compare", "whole")


def test_a_stage_whose_need_no_candidate_can_meet_is_passed_over(shop: Any) -> None:
    shop.add("stage", "compare", priority=99, requires=(any_of("reference.model"),))
    shop.add("adapter", "shy", priority=0, provides=frozenset({"reference.model"}))
    plan = shop.plan()
    assert plan.step("stage").method == "teach"
    assert "stage: compare needs reference.model" in reasons(plan)["compare"]


def test_the_stage_follows_the_kind_of_the_data(shop: Any) -> None:
    shop.add("stage", "prefer", priority=50, data_kind="preference")
    plan = shop.rows("conversation").plan()
    assert plan.step("stage").method == "teach"
    assert "stage: prefer learns from preference rows" in reasons(plan)["prefer"]
    assert shop.rows("preference").plan().step("stage").method == "prefer"


def test_data_of_the_wrong_kind_for_a_named_stage_names_the_stage_that_fits(shop: Any) -> None:
    shop.add("stage", "prefer", data_kind="preference")
    problem = shop.rows("preference").refused(stage="teach").problems[0]
    assert problem.reason == (
        "stage: teach learns from conversation rows, but preference0.jsonl holds preference rows (format made-up)"
    )
    assert problem.fix == "give conversation data, or take stage: prefer"
    assert problem.where == "data"


def test_data_of_mixed_kinds_is_one_problem_whether_the_stage_is_named_or_not(shop: Any) -> None:
    shop.rows("conversation", "preference")
    for keys in ({}, {"stage": "teach"}):
        problems = shop.refused(**keys).problems
        assert len(problems) == 1
        assert problems[0].where == "data"
        assert "preference1.jsonl" in problems[0].reason


def test_nothing_that_fits_says_why_each_does_not(shop: Any) -> None:
    shop.add("stage", "prefer", data_kind="preference", priority=1)
    problem = shop.rows("unpaired").refused().problems[0]
    assert problem.where == "stage"
    assert problem.reason.startswith("no stage method fits: teach: stage: teach learns from conversation rows")
    assert "; prefer: stage: prefer learns from preference rows" in problem.reason
    assert problem.methods == ("stage: teach", "stage: prefer")


def test_nothing_installed_says_what_could_be_named(bare: Any) -> None:
    bare.add("stage", "only-named").add("adapter", "a", priority=1).add("optimizer", "o", priority=1)
    problems = {problem.where: problem for problem in bare.refused().problems}
    assert set(problems) == {"stage", "attention"}
    assert problems["stage"].fix == "name one: only-named"
    assert problems["stage"].kind == "config"
    assert problems["attention"].kind == "environment"


def test_candidates_that_all_miss_something_are_an_environment_problem(bare: Any) -> None:
    for slot in ("stage", "adapter", "optimizer"):
        bare.add(slot, slot, priority=1)
    bare.add("attention", "far", priority=1, supports=lambda *args: Support.missing("no CUDA device", "use a GPU"))
    refused = bare.refused()
    assert refused.code == ExitCode.ENVIRONMENT
    assert refused.problems[0].fix == "use a GPU"


def test_a_candidate_lost_with_a_broken_plugin_is_not_passed_over_in_silence(shop: Any) -> None:
    shop.break_plugin("shaky", "ImportError: quake", "adapter: quake-adapter", "optimizer: other")
    plan = shop.plan(optimizer="climb")
    assert reasons(plan)["quake-adapter"] == "its plugin is broken: ImportError: quake"
    assert "other" not in reasons(plan)


def test_experimental_candidates_are_taken_with_their_warning(shop: Any) -> None:
    shop.add("attention", "young", priority=99, supports=lambda *args: Support.experimental("new"))
    plan = shop.plan()
    assert plan.step("attention").method == "young"
    assert "attention: young is experimental here: new" in plan.warnings


def test_a_failing_candidate_is_passed_over_with_its_defect(shop: Any) -> None:
    def fail(*args: Any) -> Any:
        raise OSError("lights out")

    shop.add("attention", "failing", priority=99, supports=fail)
    plan = shop.plan()
    assert plan.step("attention").method == "plain"
    assert "OSError: lights out" in reasons(plan)["failing"]
