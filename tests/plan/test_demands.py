"""What the configuration asks of the methods by `data.packing`: met, not met, and what a problem says to do."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.contracts import Declaration
from luthier.core.frozen import FrozenDict

PACKED = {"data": {"train": ["rows.jsonl"], "packing": True}}


@pytest.fixture
def packs(bare: Any) -> Any:
    """A stage that packs, `whole`, `climb`, and two kernels: `first` has priority, only `apart` keeps documents apart."""
    bare.add("stage", "teach", priority=10, provides=frozenset({"stage.packs"}))
    bare.add("adapter", "whole", priority=10)
    bare.add("optimizer", "climb", priority=10)
    bare.add("attention", "first", priority=20)
    bare.add("attention", "apart", priority=5, provides=frozenset({"attention.packed"}))
    return bare


def only(refused: Any) -> Any:
    (problem,) = refused.problems
    return problem


def test_a_packed_run_has_the_fact_and_one_that_is_not_has_not(packs: Any) -> None:
    assert "batches.packed" in packs.plan(**PACKED).traits
    assert "batches.packed" not in packs.plan().traits


def test_auto_takes_the_kernel_that_the_demand_needs_before_priority(packs: Any) -> None:
    plan = packs.plan(**PACKED)
    step = plan.step("attention")
    assert step.method == "apart"
    assert "data.packing: true needs attention.packed" in step.why
    (passed,) = [entry.reason for entry in plan.rejected if entry.method == "first"]
    assert passed == "apart comes first: data.packing: true needs attention.packed"
    assert {entry.method: entry.reason for entry in plan.rejected}[
        "first"
    ] == "first comes first (priority 20 against 5)" or (
        "apart comes first" in {entry.method: entry.reason for entry in plan.rejected}["first"]
    )
    assert packs.plan().step("attention").method == "first"


def test_a_named_kernel_that_mixes_documents_is_refused_with_what_to_take(packs: Any) -> None:
    problem = only(packs.refused(**PACKED, attention="first"))
    assert problem.where == "data.packing"
    assert problem.reason.startswith("data.packing: true needs attention.packed (the attention keeps the documents of a")
    assert problem.fix == "take attention: apart, or leave out data.packing"


def test_the_reason_that_a_kernel_gives_is_said(packs: Any) -> None:
    packs.add(
        "attention",
        "unsure",
        declares=lambda profile, config: Declaration(reasons=FrozenDict({"attention.packed": "toys have no positions"})),
    )
    assert "attention: unsure does not: toys have no positions" in only(packs.refused(**PACKED, attention="unsure")).reason


def test_a_stage_that_does_not_pack_is_refused(packs: Any) -> None:
    packs.add("stage", "reward")
    problem = only(packs.refused(**PACKED, stage="reward"))
    assert problem.reason == (
        "data.packing: true needs stage.packs (the stage can learn from packed batches), which nothing in this run provides"
    )
    assert problem.fix == "take stage: teach, or leave out data.packing"


def test_a_method_that_needs_rows_of_their_own_is_refused(packs: Any) -> None:
    packs.add("adapter", "prompt", conflicts=frozenset({"batches.packed"}))
    problem = only(packs.refused(**PACKED, adapter="prompt"))
    assert "adapter: prompt cannot be combined with batches.packed" in problem.reason
    assert "which comes from data.packing: true" in problem.reason
    assert problem.fix == "take adapter: whole, or leave out data.packing"
    assert packs.taken(adapter="prompt")["adapter"] == "prompt"


def test_auto_leaves_a_patch_out_that_packing_breaks(packs: Any) -> None:
    packs.add("patches", "padded", priority=5, conflicts=frozenset({"batches.packed"}))
    assert "patches" not in packs.taken(**PACKED)
    assert packs.taken()["patches"] == "padded"


def test_a_state_along_the_sequence_is_refused_unless_a_patch_takes_it_away(packs: Any, profiles: Any) -> None:
    packs.profile = profiles(traits=frozenset({"model.attention", "model.recurrent"}))
    problem = only(packs.refused(**PACKED))
    assert "data.packing: true cannot be combined with model.recurrent" in problem.reason
    assert "which comes from the model (toy)" in problem.reason
    assert problem.fix == "leave out data.packing"
    assert packs.plan().step("stage").method == "teach"
    packs.add("patches", "resets", removes=frozenset({"model.recurrent"}))
    assert only(packs.refused(**PACKED)).fix == "add patches: resets, or leave out data.packing"
    assert packs.taken(**PACKED, patches=["resets"])["patches"] == "resets"


def test_every_lack_is_said_at_once(packs: Any, profiles: Any) -> None:
    packs.add("stage", "reward")
    packs.profile = profiles(traits=frozenset({"model.attention", "model.recurrent"}))
    refused = packs.refused(**PACKED, stage="reward", attention="first")
    assert len(refused.problems) == 3
