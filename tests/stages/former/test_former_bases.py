"""Whether the adapters of two runs sit on the same weights, so that one base can carry both."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from luthier.core.former import same_base, why_not_same_base
from luthier.core.plan import ModelReference
from luthier.registry.catalog import discover


def why(one: Any, other: Any) -> str:
    catalog = discover()
    forth, back = why_not_same_base(one, other, catalog), why_not_same_base(other, one, catalog)
    assert bool(forth) == bool(back) != same_base(one, other, catalog)
    return forth


@pytest.mark.parametrize("how", ["merge", "stack"])
def test_two_runs_that_start_from_one(chain: Any, how: str) -> None:
    sft = chain.sft()
    one, other = (chain.plan(name, {"name": str(sft), "adapters": how}) for name in ("rm", "ppo"))
    assert why(one, other) == ""


def test_a_stack_sits_on_the_base_of_what_is_below_it(chain: Any) -> None:
    sft = chain.sft()
    stacked = chain.plan("rm", {"name": str(sft), "adapters": "stack"})
    assert why(stacked, chain.plan("ppo")) == ""
    merged = chain.plan("rm", {"name": str(sft), "adapters": "merge"})
    assert why(merged, chain.plan("ppo")) == f"one sits on {sft} (merged), the other on {chain.base}"
    assert "(merged)" in why(merged, stacked)


def test_a_run_that_was_trained_anew_is_another_base(chain: Any) -> None:
    sft = chain.train("sft", adapter="full")
    one = chain.plan("rm", str(sft))
    assert why(one, chain.plan("ppo", str(sft))) == ""
    former = dataclasses.replace(one.model.former, content="another")
    other = dataclasses.replace(one, model=dataclasses.replace(one.model, former=former))
    assert "(trained whole)" in why(one, other)


def test_what_is_stored_otherwise_is_another_base(chain: Any) -> None:
    plain, stored = chain.plan("rm"), chain.plan("ppo", patches=["nf4"])
    assert why(plain, stored).startswith("the base of one is changed by no such patch, that of the other by nf4")
    assert why(stored, chain.plan("rm", patches=["nf4"])) == ""
    assert "double_quant" in why(stored, chain.plan("rm", patches=[{"use": "nf4", "double_quant": False}]))
    assert why(plain, chain.plan("rm", patches=[{"use": "neftune"}])) == ""


def test_weights_that_train_are_no_common_base(chain: Any) -> None:
    whole = chain.plan("rm", adapter="full")
    assert why(chain.plan("ppo"), whole) == "the sft run with adapter: full trains the weights of its model themselves"


def test_a_revision_is_another_model(chain: Any) -> None:
    def of(revision: str) -> Any:
        return dataclasses.replace(
            chain.plan("ppo"), model=ModelReference(name="a/b", path="a/b", kind="hub", revision=revision)
        )

    assert why(of("v1"), of("v2")) == "one sits on a/b of revision v1, the other on a/b of revision v2"
    assert why(of("v1"), of("v1")) == ""
