"""Whether methods combine: needs, conflicts, claims; and whether the fix that is suggested does fix it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from luthier.core.contracts import Declaration, Support
from luthier.core.frozen import FrozenDict
from luthier.core.traits import any_of


def traits(*names: str) -> frozenset[str]:
    return frozenset(names)


def test_a_need_that_is_met_is_no_problem(shop: Any) -> None:
    shop.add("optimizer", "matrix", requires=(any_of("params.full_rank", "base.partly_frozen"),))
    assert shop.taken(optimizer="matrix", adapter="whole")["optimizer"] == "matrix"


def test_an_unmet_need_names_the_methods_that_would_meet_it_by_slot(shop: Any) -> None:
    shop.add("optimizer", "matrix", requires=(any_of("params.full_rank", "base.partly_frozen"),))
    shop.add("adapter", "upper", provides=traits("base.partly_frozen"))
    shop.add("patches", "thaw", provides=traits("params.full_rank"))
    problems = shop.refused(optimizer="matrix", adapter="thin").problems
    assert len(problems) == 1
    assert problems[0].reason.startswith("optimizer: matrix needs base.partly_frozen or params.full_rank (")
    assert problems[0].reason.endswith("which nothing else in this run provides")
    assert set(problems[0].fix.split(", or ")) == {"take adapter: whole or upper", "add patches: thaw"}


def test_every_suggested_fix_of_an_unmet_need_works(shop: Any) -> None:
    shop.add("optimizer", "matrix", requires=(any_of("params.full_rank"),))
    shop.add("patches", "thaw", provides=traits("params.full_rank"))
    fix = shop.refused(optimizer="matrix", adapter="thin").problems[0].fix
    assert re.findall(r"(\w+): (\w+)", fix) == [("patches", "thaw"), ("adapter", "whole")]
    assert shop.plan(optimizer="matrix", adapter="thin", patches=["thaw"])
    assert shop.plan(optimizer="matrix", adapter="whole")


def test_a_provider_that_cannot_be_used_here_is_named_with_what_hinders_it(shop: Any) -> None:
    shop.add("optimizer", "matrix", requires=(any_of("weights.quantized"),))
    shop.add(
        "patches",
        "bits",
        provides=traits("weights.quantized"),
        supports=lambda profile, environment, config: Support.missing("no such device"),
    )
    fix = shop.refused(optimizer="matrix").problems[0].fix
    assert "patches: bits would provide it, but patches: bits says no: no such device" in fix


def test_a_need_that_nobody_can_meet_says_so(shop: Any) -> None:
    shop.add("optimizer", "matrix", requires=(any_of("some.thing"),))
    assert shop.refused(optimizer="matrix").problems[0].fix == "no installed method provides it"


def test_each_of_several_needs_must_be_met(shop: Any) -> None:
    shop.add("optimizer", "matrix", requires=(any_of("params.full_rank"), any_of("base.frozen"), any_of("model.attention")))
    problems = shop.refused(optimizer="matrix", adapter="thin").problems
    assert len(problems) == 1
    assert "needs params.full_rank" in problems[0].reason


def test_a_method_does_not_meet_its_own_need(shop: Any) -> None:
    shop.add("optimizer", "baron", requires=(any_of("swamp.firm"),), provides=traits("swamp.firm"))
    assert "optimizer: baron needs swamp.firm" in shop.refused(optimizer="baron").problems[0].reason


def test_a_method_does_not_conflict_with_what_it_provides_itself(shop: Any) -> None:
    shop.add("patches", "bits", provides=traits("weights.quantized"), conflicts=traits("weights.quantized"))
    assert shop.plan(patches=["bits"])


def test_two_methods_that_exclude_each_other_are_one_problem(shop: Any) -> None:
    for name in ("four", "eight"):
        shop.add("patches", name, provides=traits("weights.quantized"), conflicts=traits("weights.quantized"))
    problems = shop.refused(patches=["four", "eight"]).problems
    assert len(problems) == 1
    assert set(problems[0].methods) == {"patches: four", "patches: eight"}
    assert set(problems[0].fix.split(", or ")) == {"leave out patches: four", "leave out patches: eight"}


def test_a_conflict_names_both_methods_and_alternatives_on_both_sides(shop: Any) -> None:
    shop.add("optimizer", "matrix", priority=20, conflicts=traits("adapter.low_rank"))
    problems = shop.refused(optimizer="matrix", adapter="thin").problems
    assert len(problems) == 1
    assert problems[0].reason == (
        "optimizer: matrix cannot be combined with adapter.low_rank (the trained update is a product of two thin matrices), "
        "which comes from adapter: thin"
    )
    assert problems[0].methods == ("optimizer: matrix", "adapter: thin")
    assert problems[0].fix == "take optimizer: climb, or take adapter: whole"


def test_alternatives_that_would_clash_or_are_not_supported_are_not_suggested(shop: Any) -> None:
    shop.add("optimizer", "matrix", conflicts=traits("adapter.low_rank"))
    shop.add("optimizer", "other", priority=99, requires=(any_of("params.full_rank"),))
    shop.add("optimizer", "never", priority=99, supports=lambda *args: Support.no("never"))
    shop.add("adapter", "also-thin", priority=99, provides=traits("adapter.low_rank"))
    assert (
        shop.refused(optimizer="matrix", adapter="thin").problems[0].fix == "take optimizer: climb, or take adapter: whole"
    )


def test_a_conflict_of_one_option_says_which_and_why(shop: Any) -> None:
    def declares(profile: Any, config: Any) -> Declaration:
        return Declaration(
            conflicts=traits("weights.quantized"),
            reasons=FrozenDict({"weights.quantized": "init principal splits the weights"}),
        )

    shop.add("patches", "bits", provides=traits("weights.quantized"))
    shop.add("adapter", "split", provides=traits("base.frozen"), declares=declares)
    (problem,) = shop.refused(adapter="split", patches=["bits"]).problems
    assert problem.reason.endswith("which comes from patches: bits: init principal splits the weights")


def test_a_conflict_with_the_model_names_the_model(shop: Any, profiles: Any) -> None:
    shop.profile = profiles(traits=frozenset({"model.moe"}))
    shop.add("optimizer", "dense", conflicts=traits("model.moe"))
    problem = shop.refused(optimizer="dense").problems[0]
    assert problem.reason.endswith("which comes from the model (toy)")
    assert problem.fix == "take optimizer: climb"


def test_a_conflict_with_the_model_does_not_advise_to_change_another_method(shop: Any, profiles: Any) -> None:
    shop.profile = profiles(traits=frozenset({"weights.quantized"}))
    shop.add("patches", "bits", provides=traits("weights.quantized"))
    shop.add("optimizer", "dense", conflicts=traits("weights.quantized"))
    problem = shop.refused(optimizer="dense", patches=["bits"]).problems[0]
    assert "patches: bits and the model (toy)" in problem.reason
    assert "leave out" not in problem.fix


@pytest.mark.parametrize(("device", "fits"), [("cpu", False), ("cuda", True)])
def test_traits_of_the_machine_are_facts(shop: Any, environments: Any, device: str, fits: bool) -> None:
    shop.environment = environments(device=device)
    shop.add("attention", "fast", requires=(any_of("device.cuda"),))
    shop.add("patches", "slow", conflicts=traits("device.cpu"))
    if fits:
        assert shop.taken(attention="fast", patches=["slow"])["attention"] == "fast"
        return
    problems = shop.refused(attention="fast", patches=["slow"]).problems
    assert len(problems) == 2
    assert any("which comes from this machine" in problem.reason for problem in problems)


def test_traits_of_the_model_are_facts(shop: Any, profiles: Any) -> None:
    shop.add("patches", "router", requires=(any_of("model.moe"),))
    assert "patches: router needs model.moe" in shop.refused(patches=["router"]).problems[0].reason
    shop.profile = profiles(traits=frozenset({"model.moe"}))
    assert shop.plan(patches=["router"])


def test_a_claim_owned_twice_names_the_owners_and_who_could_go(shop: Any) -> None:
    for name in ("left", "right"):
        shop.add("patches", name, claims=frozenset({"loss.forward", f"{name}.own"}))
    problems = shop.refused(patches=["left", "right"]).problems
    assert len(problems) == 1
    assert problems[0].reason == (
        "patches: left and patches: right both claim loss.forward (replaces the computation of logits and loss)"
    )
    assert problems[0].fix == "leave out patches: left, or leave out patches: right"


def test_three_owners_of_a_claim_are_one_problem(shop: Any) -> None:
    for name in ("a", "b", "c"):
        shop.add("patches", name, claims=frozenset({"loss.forward"}))
    problems = shop.refused(patches=["a", "b", "c"]).problems
    assert len(problems) == 1
    assert "all claim" in problems[0].reason


def test_a_claim_of_a_third_party_needs_no_entry_in_the_vocabulary(shop: Any) -> None:
    for name in ("left", "right"):
        shop.add("patches", name, claims=frozenset({"swamp.bridge"}))
    assert "swamp.bridge (declared by a plugin)" in shop.refused(patches=["left", "right"]).problems[0].reason


def test_invalid_options_do_not_cause_a_second_problem_about_what_the_method_would_provide(shop: Any) -> None:
    shop.add("stage", "compare", requires=(any_of("adapter.low_rank"),))
    problems = shop.refused(stage="compare", adapter={"use": "thin", "rnk": 3}).problems
    assert [problem.where for problem in problems] == ["adapter.rnk"]


def test_an_unknown_name_does_not_cause_a_second_problem_about_what_it_would_provide(shop: Any) -> None:
    shop.add("stage", "compare", requires=(any_of("adapter.low_rank"),))
    assert len(shop.refused(stage="compare", adapter="thinn").problems) == 1


def test_but_a_need_that_the_faulty_slot_could_never_meet_is_a_problem_of_its_own(shop: Any) -> None:
    shop.add("stage", "compare", requires=(any_of("some.thing"),))
    assert len(shop.refused(stage="compare", adapter="thinn").problems) == 2


def test_facts_of_the_run_are_listed_in_the_plan(shop: Any) -> None:
    assert shop.plan(adapter="thin", patches=[]).traits == (
        "adapter.low_rank", "base.frozen", "device.cpu", "engine.single", "model.attention",
    )  # fmt: skip
