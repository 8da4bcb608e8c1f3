"""Methods that the configuration names: found or not, their options, their packages, their own word on the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from luthier.core.contracts import Declaration, MemoryTerms, Support
from luthier.core.errors import ExitCode
from luthier.core.frozen import FrozenDict
from luthier.core.options import option
from luthier.core.plan import Plan
from luthier.core.schedule import OptimizerOptions
from luthier.core.traits import any_of


def test_a_named_method_is_taken_with_its_whole_configuration(shop: Any) -> None:
    plan = shop.plan(adapter={"use": "whole"}, optimizer={"use": "climb", "lr": 1e-3})
    step = plan.step("adapter")
    assert (step.method, step.why, step.provider) == ("whole", "named in the configuration", "luthier-workshop 1.0")
    assert plan.step("optimizer").config["lr"] == 1e-3
    assert plan.step("optimizer").config["momentum"] == 0.9


def test_steps_stand_in_the_order_of_execution(shop: Any) -> None:
    for name, phase in (("late", "attached"), ("early", "load"), ("middle", "loaded")):
        shop.add("patches", name, phase=phase)
    plan = shop.plan(patches=["late", "middle", "early"])
    assert [step.method for step in plan.steps] == ["early", "plain", "middle", "thin", "late", "climb", "teach"]


def test_patches_of_one_phase_stand_by_priority_then_name(shop: Any) -> None:
    for name, priority in (("b", 1), ("a", 1), ("z", 9)):
        shop.add("patches", name, priority=priority)
    assert [step.method for step in shop.plan().steps_in("patches")] == ["z", "a", "b"]


@pytest.mark.parametrize(
    ("slot", "name", "said"),
    [
        ("adapter", "thinn", "did you mean 'thin'?"),
        ("adapter", "THIN", "did you mean 'thin'?"),
        ("adapter", "quux", "there are: thin, whole"),
        ("optimizer", "thin", "'thin' belongs under `adapter`"),
    ],
)
def test_an_unknown_name_says_what_was_meant(shop: Any, slot: str, name: str, said: str) -> None:
    refused = shop.refused(**{slot: name})
    assert len(refused.problems) == 1
    assert said in refused.problems[0].reason
    assert refused.problems[0].where == slot
    assert refused.problems[0].methods == (f"{slot}: {name}",)
    assert refused.code == ExitCode.REFUSED


def test_a_preset_in_the_wrong_slot_says_where_it_belongs(shop: Any) -> None:
    shop.preset("adapter", "frugal", {"adapter": "thin"})
    assert "'frugal' belongs under `adapter`" in shop.refused(optimizer="frugal").problems[0].reason


def test_a_broken_plugin_stops_the_run_only_when_it_is_selected(shop: Any) -> None:
    shop.break_plugin("shaky", "ImportError: no module named quake", "adapter: shaky-adapter")
    assert shop.plan(adapter="thin").step("adapter").method == "thin"
    refused = shop.refused(adapter="shaky-adapter")
    assert "no module named quake" in refused.problems[0].reason
    assert "shaky (shaky 2.0)" in refused.problems[0].fix
    assert refused.code == ExitCode.ENVIRONMENT


def test_configuration_problems_decide_the_exit_code_over_environment_problems(shop: Any) -> None:
    shop.break_plugin("shaky", "it fell over", "adapter: shaky")
    refused = shop.refused(adapter="shaky", optimizer={"use": "climb", "lr": -1})
    assert {problem.kind for problem in refused.problems} == {"config", "environment"}
    assert refused.code == ExitCode.REFUSED


@pytest.mark.parametrize(
    ("options", "where", "reason", "fix"),
    [
        ({"rnk": 4}, "adapter.rnk", "unknown key", "did you mean `rank`?"),
        ({"rank": "4"}, "adapter.rank", "must be a whole number, got '4' (text)", "write it without quotes: 4"),
        ({"rank": True}, "adapter.rank", "must be a whole number, got true (true or false)", ""),
        ({"rank": 4.0}, "adapter.rank", "must be a whole number, got 4.0 (a number)", "write 4"),
        ({"rank": 0}, "adapter.rank", "must be at least 1, got 0", ""),
        ({"rank": 65}, "adapter.rank", "must be at most 64, got 65", ""),
        ({"init": "zer"}, "adapter.init", "must be one of zero, principal, got 'zer' (text)", "did you mean `zero`?"),
        ({"target": [1]}, "adapter.target[0]", "must be text, got 1 (a number)", "put it in quotes"),
    ],
)
def test_invalid_options_have_their_place_and_a_fix(shop: Any, options: Any, where: str, reason: str, fix: str) -> None:
    problems = shop.refused(adapter={"use": "thin", **options}).problems
    assert [(problem.where, problem.reason) for problem in problems] == [(where, reason)]
    assert problems[0].fix.startswith(fix)
    assert bool(problems[0].fix) == bool(fix)


def test_missing_packages_are_an_environment_problem_with_the_command(shop: Any) -> None:
    shop.add("adapter", "heavy", packages=("numbers-lib>=2", "other-lib"))
    shop.environment = type(shop.environment)(
        **{**vars(shop.environment), "packages": FrozenDict({"numbers-lib": "1.0", "other-lib": "5"})}
    )
    refused = shop.refused(adapter="heavy")
    assert "numbers-lib>=2" in refused.problems[0].reason
    assert "1.0" in refused.problems[0].reason
    assert "other-lib" not in refused.problems[0].reason
    assert refused.problems[0].fix == 'pip install "numbers-lib>=2"'
    assert refused.code == ExitCode.ENVIRONMENT


def test_a_method_that_says_no_is_refused_with_its_reason_and_fix(shop: Any) -> None:
    shop.add("adapter", "picky", supports=lambda profile, environment, config: Support.no("no norms", "take another model"))
    refused = shop.refused(adapter="picky")
    assert (refused.problems[0].reason, refused.problems[0].fix) == (
        "adapter: picky says no: no norms",
        "take another model",
    )
    assert refused.code == ExitCode.REFUSED


def test_a_method_that_misses_something_is_an_environment_problem(shop: Any) -> None:
    shop.add("adapter", "needy", supports=lambda profile, environment, config: Support.missing("no CUDA device"))
    assert shop.refused(adapter="needy").code == ExitCode.ENVIRONMENT


def test_an_experimental_method_runs_with_a_warning(shop: Any) -> None:
    shop.add("adapter", "young", supports=lambda profile, environment, config: Support.experimental("tried on toys only"))
    plan = shop.plan(adapter="young")
    assert plan.step("adapter").method == "young"
    assert "adapter: young is experimental here: tried on toys only" in plan.warnings


def test_supports_sees_model_machine_and_options(shop: Any) -> None:
    seen: list[Any] = []

    def supports(profile: Any, environment: Any, config: Any) -> Support:
        seen.append((profile, environment, config))
        return Support.yes()

    shop.add("optimizer", "curious", supports=supports, config=OptimizerOptions)
    shop.plan(optimizer={"use": "curious", "lr": 0.5})
    assert seen[0][:2] == (shop.profile, shop.environment)
    assert seen[0][2].lr == 0.5


def boom(*args: Any) -> Any:
    raise KeyError("left foot")


class Size(Enum):
    SMALL = "small"


@dataclass(frozen=True, kw_only=True)
class EnumOptions:
    size: Size = option(Size.SMALL, "Not JSON-shaped.")


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    folder: Path = option(Path("x"), "Text, when it is written.")


@dataclass(frozen=True, kw_only=True)
class NanOptions:
    cap: float = option(float("nan"), "Not equal to itself.")


@dataclass(frozen=True, kw_only=True)
class CrashingOptions:
    size: int = option(1, "Size.")

    def __post_init__(self) -> None:
        raise ZeroDivisionError("by design")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"supports": boom}, "KeyError: 'left foot'"),
        ({"declares": boom}, "KeyError: 'left foot'"),
        ({"load_options": boom}, "`load_options`"),
        ({"memory": boom}, "`memory`"),
        ({"supports": lambda *args: True}, "`supports` returned bool, not Support"),
        ({"declares": lambda *args: {"provides": ()}}, "AttributeError"),
        ({"memory": lambda *args: None}, "`memory` returned NoneType, not MemoryTerms"),
        ({"load_options": lambda *args: None}, "`load_options` returned NoneType, not Mapping"),
        ({"load_options": lambda *args: {"dtype": object()}}, "not JSON serializable"),
        ({"packages": ("not a requirement !",)}, "is no package requirement"),
        ({"config": EnumOptions}, "cannot be written as JSON"),
        ({"config": NanOptions}, "cannot be written as JSON"),
        ({"config": CrashingOptions}, "ZeroDivisionError: by design"),
    ],
)
def test_a_defect_of_a_method_names_the_method_and_who_provides_it(shop: Any, fields: Any, said: str) -> None:
    shop.add("adapter", "bad", **fields)
    refused = shop.refused(adapter="bad")
    assert len(refused.problems) == 1
    text = refused.problems[0].reason
    assert said in text
    assert "defect of" in text
    assert "adapter: bad" in text or refused.problems[0].where == "adapter"
    assert refused.code == ExitCode.ENVIRONMENT


def test_a_path_among_the_options_is_written_as_text(shop: Any) -> None:
    shop.add("adapter", "filed", config=PathOptions)
    plan = shop.plan(adapter={"use": "filed", "folder": Path("/tmp/there")})
    assert plan.step("adapter").config["folder"] == "/tmp/there"
    assert Plan.from_json(plan.to_json()) == plan


def test_a_method_named_twice_is_one_problem(shop: Any) -> None:
    shop.add("patches", "once", claims=frozenset({"loss.forward"}))
    problems = shop.refused(patches=["once", {"use": "once"}]).problems
    assert [problem.reason for problem in problems] == ["patches: once is named twice"]


def test_load_options_are_merged(shop: Any) -> None:
    shop.add("patches", "nf", load_options=lambda profile, config: {"quantization_config": {"bits": 4, "type": "nf"}})
    shop.add("patches", "low", load_options=lambda profile, config: {"low_cpu_mem_usage": True})
    plan = shop.plan(patches=["nf", "low"])
    assert plan.load_options["quantization_config"]["bits"] == 4
    assert plan.load_options["low_cpu_mem_usage"] is True
    assert plan.load_options["attn_implementation"] == "eager"


def test_load_options_that_agree_are_no_problem_and_others_name_both(shop: Any) -> None:
    for name, value in (("one", 1), ("uno", 1), ("two", 2)):
        shop.add("patches", name, load_options=lambda profile, config, value=value: {"depth": value})
    assert shop.plan(patches=["one", "uno"]).load_options["depth"] == 1
    problem = shop.refused(patches=["one", "two"]).problems[0]
    assert problem.methods == ("patches: one", "patches: two")
    assert "depth: 1 against 2" in problem.reason


def test_an_optimizer_without_schedule_options_is_warned_about(shop: Any) -> None:
    shop.add("optimizer", "simple")
    assert any("optimizer: simple has no schedule" in warning for warning in shop.plan(optimizer="simple").warnings)
    assert not any("schedule" in warning for warning in shop.plan(optimizer="climb").warnings)


def test_a_method_declares_more_for_some_options(shop: Any) -> None:
    def declares(profile: Any, config: Any) -> Declaration:
        return Declaration(provides=frozenset({"reference.by_disabling"}) if config.init == "zero" else frozenset())

    thin = next(method for method in shop.methods if method.name == "thin")
    shop.methods[shop.methods.index(thin)] = replace(thin, declares=declares)
    shop.add("stage", "compare", requires=(any_of("reference.by_disabling", "reference.model"),))
    assert "reference.by_disabling" in shop.plan(stage="compare", adapter="thin").traits
    problem = shop.refused(stage="compare", adapter={"use": "thin", "init": "principal"}).problems[0]
    assert problem.methods == ("stage: compare",)
    assert problem.fix == "adapter: thin provides it with its default options"


def test_an_isolated_patch_isolates_the_plan(shop: Any) -> None:
    shop.add("patches", "first", phase="load", isolate=True)
    assert shop.plan(patches=["first"]).isolate
    assert not shop.plan(patches=[]).isolate


def test_memory_terms_of_the_chosen_methods_reach_the_forecast(shop: Any) -> None:
    shop.add("patches", "fat", memory=lambda profile, config: MemoryTerms(constant=12345))
    lean, fat = shop.plan(patches=[]).memory, shop.plan(patches=["fat"]).memory
    assert fat.weights - lean.weights == 12345
