"""How a stage gets its reference policy is decided in the plan: by traits, by what the stage can use, never by names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from luthier.core.contracts import Declaration, MemoryTerms
from luthier.core.frozen import FrozenDict
from luthier.core.options import option

Way = Literal["auto", "disabled", "copied", "precomputed", "model"]
ALL = ("disabled", "copied", "precomputed", "model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    reference: Way = option("auto", "Way.")


def ways(config: CompareOptions) -> tuple[Any, ...]:
    return ALL if config.reference == "auto" else (config.reference,)


def shop_with(shop: Any, **adapters: set[str]) -> Any:
    """The workshop with the stage `compare` and adapters of 100 added parameters that provide these traits."""
    shop.add("stage", "compare", config=CompareOptions, references=ways)
    for name, provides in adapters.items():
        terms = MemoryTerms(trainable=100, added=100, trainable_bytes=4)
        shop.add("adapter", name, provides=frozenset(provides), memory=lambda profile, config, terms=terms: terms)
    return shop


def way(plan: Any) -> str | None:
    found: str | None = plan.step("stage").reference
    return found


@pytest.mark.parametrize(
    ("provides", "expected"),
    [
        ({"base.frozen", "reference.by_disabling", "adapter.copies"}, "disabled"),
        ({"base.frozen", "reference.by_disabling"}, "disabled"),
        ({"base.frozen", "adapter.copies"}, "copied"),
        ({"base.frozen"}, "precomputed"),
        ({"params.full_rank"}, "precomputed"),
    ],
)
def test_the_first_way_that_the_traits_allow(shop: Any, provides: set[str], expected: str) -> None:
    plan = shop_with(shop, some=provides).plan(stage="compare", adapter="some")
    assert way(plan) == expected
    assert [step.reference for step in plan.steps if step.slot != "stage"] == [None] * (len(plan.steps) - 1)


def test_the_stage_names_the_order(shop: Any) -> None:
    shop.add("stage", "generate", references=lambda config: ("model", "disabled"))
    shop_with(shop, both={"reference.by_disabling", "adapter.copies"})
    assert way(shop.plan(stage="generate", adapter="both")) == "model"


def test_a_stage_without_a_reference_has_none(shop: Any) -> None:
    shop_with(shop, both={"reference.by_disabling", "adapter.copies"})
    plan = shop.plan(stage="teach", adapter="both")
    assert way(plan) is None
    assert "reference.model" not in plan.traits


def test_a_way_that_is_named_is_the_only_one(shop: Any) -> None:
    shop_with(shop, both={"reference.by_disabling", "adapter.copies"}, bare={"params.full_rank"})
    for name in ALL:
        assert way(shop.plan(stage={"use": "compare", "reference": name}, adapter="both")) == name
    for name in ("precomputed", "model"):
        assert way(shop.plan(stage={"use": "compare", "reference": name}, adapter="bare")) == name


@pytest.mark.parametrize("name", ["disabled", "copied"])
def test_a_named_way_that_is_impossible_is_refused(shop: Any, name: str) -> None:
    shop_with(shop, bare={"params.full_rank"})
    (problem,) = shop.refused(stage={"use": "compare", "reference": name}, adapter="bare").problems
    assert problem.methods == ("stage: compare", "adapter: bare")
    assert {"disabled": "with the adapter off", "copied": "a frozen copy of the adapter"}[name] in problem.reason
    assert "adapter: bare does not provide" in problem.reason
    assert "reference" in problem.fix


def test_the_adapter_says_why(shop: Any) -> None:
    shop_with(shop)
    reasons = FrozenDict({"reference.by_disabling": "its start is taken out of the weights"})
    shop.add("adapter", "odd", declares=lambda profile, config: Declaration(reasons=reasons))
    (problem,) = shop.refused(stage={"use": "compare", "reference": "disabled"}, adapter="odd").problems
    assert problem.reason.endswith("and its start is taken out of the weights")


def test_other_problems_are_not_hidden_and_not_doubled(shop: Any) -> None:
    """Without an adapter nothing is known about the reference."""
    shop_with(shop)
    refused = shop.refused(stage={"use": "compare", "reference": "disabled"}, adapter="missing")
    assert not [problem for problem in refused.problems if "as its reference" in problem.reason]


@pytest.mark.parametrize(
    ("answer", "says"),
    [(lambda config: ("mirrored",), "mirrored"), (lambda config: 1 / 0, "ZeroDivisionError"), (lambda config: None, "None")],
)
def test_a_stage_that_answers_wrongly_is_named(shop: Any, answer: Any, says: str) -> None:
    shop.add("stage", "wrong", references=answer)
    (problem,) = shop.refused(stage="wrong", adapter="thin").problems
    assert "in its `references`" in problem.reason
    assert says in problem.reason


def memory(shop: Any, name: str, **config: Any) -> Mapping[str, int]:
    found: Mapping[str, int] = dataclasses.asdict(
        shop.plan(stage={"use": "compare", "reference": name}, adapter="both", precision="fp32", **config).memory
    )
    return found


def test_what_the_reference_takes_of_the_memory(shop: Any) -> None:
    """Of a model of 1000 parameters and an adapter of 100, in float32: nothing, 100 numbers, or 1000 more."""
    shop_with(shop, both={"reference.by_disabling", "adapter.copies"})
    none = memory(shop, "disabled")
    assert memory(shop, "precomputed") == none
    assert memory(shop, "copied")["weights"] - none["weights"] == 4 * 100
    assert memory(shop, "model")["weights"] - none["weights"] == 4 * 1000 + 4 * 100
    for name in ("copied", "model"):
        more = memory(shop, name)
        assert more["peak"] - none["peak"] == more["weights"] - none["weights"]
        assert {key: more[key] for key in ("gradients", "optimizer", "activations")} == {
            key: none[key] for key in ("gradients", "optimizer", "activations")
        }


def test_a_reference_model_is_stored_as_the_base_is(shop: Any) -> None:
    """Half a byte for each of 600 parameters, four for the other 400 and for the adapter's 100."""
    shop.add("patches", "small", memory=lambda profile, config: MemoryTerms(weight_bytes=0.5, stored_parameters=600))
    shop_with(shop, both={"reference.by_disabling"})
    with_it, without = memory(shop, "model", patches=["small"]), memory(shop, "disabled", patches=["small"])
    assert with_it["weights"] - without["weights"] == 300 + 4 * 400 + 4 * 100


def test_the_trait_of_a_reference_model(shop: Any) -> None:
    shop_with(shop, both={"reference.by_disabling", "adapter.copies"})
    assert "reference.model" in shop.plan(stage={"use": "compare", "reference": "model"}, adapter="both").traits
    assert "reference.model" not in shop.plan(stage={"use": "compare", "reference": "copied"}, adapter="both").traits
