"""A refused plan: every problem at once, in words for people, whatever the order in which plugins were found."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.contracts import Support
from luthier.core.errors import ExitCode, PlanRefused, Problem
from luthier.core.plan import Plan
from luthier.core.traits import any_of


def test_five_independent_faults_are_five_problems(shop: Any) -> None:
    shop.add("patches", "left", claims=frozenset({"loss.forward"})).add(
        "patches", "right", claims=frozenset({"loss.forward"})
    )
    shop.add("attention", "far", supports=lambda *args: Support.missing("no CUDA device"))
    refused = shop.refused(
        stage="taech",
        adapter={"use": "thin", "rnk": 4},
        optimizer={"use": "climb", "lr": -1},
        attention="far",
        patches=["left", "right"],
    )
    assert [problem.where or problem.methods[0] for problem in refused.problems] == [
        "stage", "adapter.rnk", "optimizer.lr", "attention: far", "patches: left",
    ]  # fmt: skip
    assert refused.code == ExitCode.REFUSED


def test_the_text_of_a_refusal_reads_as_a_numbered_list(shop: Any) -> None:
    shop.add("optimizer", "matrix", requires=(any_of("params.full_rank"),))
    refused = shop.refused(stage="taech", adapter={"use": "thin", "rank": "4"}, optimizer="climb", train={"eval_every": 5})
    assert str(refused) == (
        "the plan was refused: 3 problems\n"
        "  1. stage: there is no stage method named 'taech'; did you mean 'teach'?\n"
        "  2. adapter.rank: must be a whole number, got '4' (text)\n"
        "     fix: write it without quotes: 4\n"
        "  3. train.eval_every: no rows are held out, so there is nothing to evaluate\n"
        "     fix: set data.eval, for example to 0.05"
    )


def test_one_problem_is_one_problem() -> None:
    assert str(PlanRefused([Problem(reason="no", where="adapter")])) == "the plan was refused: 1 problem\n  1. adapter: no"


def test_reasons_of_several_lines_stay_in_their_place() -> None:
    text = str(PlanRefused([Problem(reason="first\nsecond", fix="third")]))
    assert text.splitlines()[1:] == ["  1. first", "   second", "     fix: third"]


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (["config"], ExitCode.REFUSED),
        (["environment"], ExitCode.ENVIRONMENT),
        (["budget"], ExitCode.BUDGET),
        (["budget", "environment"], ExitCode.ENVIRONMENT),
        (["budget", "environment", "config"], ExitCode.REFUSED),
    ],
)
def test_the_exit_code_follows_the_kinds_of_problems(kinds: list[Any], code: ExitCode) -> None:
    assert PlanRefused([Problem(reason="r", kind=kind) for kind in kinds]).code == code


def test_the_draft_has_what_is_known_and_is_json(shop: Any) -> None:
    shop.add("adapter", "best", priority=99, supports=lambda *args: Support.no("never"))
    draft = json.loads(json.dumps(shop.refused(optimizer={"use": "climb", "lr": 0}).draft))
    assert {step["slot"]: step["method"] for step in draft["steps"]} == {
        "adapter": "thin", "attention": "plain", "stage": "teach",
    }  # fmt: skip
    assert {entry["method"] for entry in draft["rejected"]} == {"best", "whole"}
    assert draft["model"]["name"] == "m"


def furnish(shop: Any, order: tuple[int, ...]) -> Any:
    """Methods with ties, claims, needs and conflicts, put into the catalog in this order."""
    pieces = [
        ("patches", "a", {"priority": 5, "claims": frozenset({"loss.forward"})}),
        ("patches", "b", {"priority": 5, "claims": frozenset({"loss.forward"})}),
        ("patches", "roof", {"priority": 9, "requires": (any_of("house.walls"),)}),
        ("patches", "walls", {"priority": 5, "provides": frozenset({"house.walls"})}),
        ("adapter", "able", {"priority": 10, "conflicts": frozenset({"house.walls"})}),
    ]
    for index in order:
        slot, name, fields = pieces[index]
        shop.add(slot, name, **fields)
    return shop


@pytest.fixture
def another_shop(shop: Any, new_shop: Callable[[], Any]) -> Callable[[], Any]:
    standard = tuple(shop.methods)

    def make() -> Any:
        made = new_shop()
        made.methods = list(standard)
        return made

    return make


def test_the_order_in_which_plugins_are_found_does_not_matter(another_shop: Callable[[], Any]) -> None:
    plans: set[Plan] = set()
    refusals: set[str] = set()
    for order in itertools.permutations(range(5)):
        shop = furnish(another_shop(), order)
        plans.add(shop.plan())
        refusals.add(str(shop.refused(patches=["b", "walls", "a"], adapter="able")))
        shop.methods.reverse()
        plans.add(shop.plan())
    assert len(plans) == 1
    assert len(refusals) == 1
    assert [step.method for step in plans.pop().steps_in("patches")] == ["a"]


def test_the_order_of_keys_in_the_file_does_not_matter(shop: Any) -> None:
    keys = {"adapter": {"use": "thin", "rank": 2}, "optimizer": {"lr": 0.1, "momentum": 0.5}, "stage": "teach"}
    plans = {shop.plan(**dict(order)) for order in itertools.permutations(keys.items())}
    assert len(plans) == 1


def test_a_plan_says_what_detection_did_not_understand(shop: Any, profiles: Callable[..., Any]) -> None:
    from luthier.core.profile import Unclassified

    shop.profile = profiles(unclassified=(Unclassified(module="model.odd", why="no projection"),))
    assert any("model.odd (no projection)" in warning for warning in shop.plan().warnings)


def test_rows_longer_than_the_model_knows_positions(shop: Any, profiles: Callable[..., Any]) -> None:
    def warned(length: int, **keys: Any) -> list[str]:
        made = shop.plan(data={"train": ["rows.jsonl"], "max_length": length}, **keys)
        return [warning for warning in made.warnings if "max_length" in warning]

    shop.profile = profiles(context_length=2048)
    assert warned(2048) == []
    (warning,) = warned(2049)
    assert warning.startswith("data.max_length is 2049, and the model knows 2048 positions")
    shop.add("patches", "stretch", claims=frozenset({"positions.scale"}))
    assert warned(4096, patches=["stretch"]) == []
    assert len(warned(4096)) == 1
    shop.profile = profiles(context_length=None)
    assert warned(10**6) == []


def test_evaluation_without_held_out_rows_is_refused(shop: Any) -> None:
    problem = shop.refused(train={"eval_every": 10}).problems[0]
    assert (problem.where, problem.fix) == ("train.eval_every", "set data.eval, for example to 0.05")
    assert shop.plan(train={"eval_every": 10}, data={"train": ["a"], "eval": 0.1})
