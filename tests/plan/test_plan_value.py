"""The plan as a value: written and read back, hashed, never changed, and resolved again to itself."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.config import parse_config
from luthier.core.frozen import FrozenDict, canonical_json, freeze, thaw
from luthier.core.options import option
from luthier.core.plan import Plan, Step
from luthier.core.profile import RoleGroup, Unclassified

CODE = """
import sys
from luthier.core.plan import Plan
plan = Plan.from_json(sys.stdin.read())
print(plan.hash)
"""

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True, kw_only=True)
class OddOptions:
    """Every kind of value that JSON knows."""

    text: str = option("", "Text.")
    number: float = option(0.0, "Number.")
    whole: int | None = option(None, "Whole number.")
    flag: bool = option(False, "Flag.")
    names: tuple[str, ...] = option((), "Names.")
    table: dict[str, float] = option(factory=dict, doc="Table.")


@pytest.fixture
def plan(shop: Any, profiles: Callable[..., Any]) -> Plan:
    """A plan with something in every field."""
    group = RoleGroup(pattern="model.layers.*.q", kind="linear", shape=(8, 8), in_features=8, out_features=8, layers=(0, 1))
    shop.profile = profiles(
        roles=FrozenDict({"attn.q": (group,)}), unclassified=(Unclassified(module="odd", why="unknown"),)
    )
    shop.add("adapter", "best", priority=99, packages=("not-there>=3",))
    shop.add("patches", "bits", priority=3, load_options=lambda profile, config: {"bits": {"of": [4, 8], "on": True}})
    return shop.rows("conversation").plan(optimizer={"lr": 1e-3})


def test_a_plan_that_is_written_and_read_is_the_same_plan(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.hash == plan.hash
    assert Plan.from_json(plan.to_json(indent=None)) == plan


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), JSON_VALUES, max_size=4),
    why=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_json_in_a_step_survives(plan: Plan, config: dict[str, Any], why: str) -> None:
    step = Step(slot="patches", method="odd", provider="p", config=freeze(config), why=why)
    changed = dataclasses.replace(plan, steps=(*plan.steps, step), warnings=(why,))
    again = Plan.from_json(changed.to_json())
    assert again == changed
    assert hash(again) == hash(changed)
    assert again.hash == changed.hash


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "text": st.text(st.characters(exclude_categories=["Cs"])),
            "number": st.floats(allow_nan=False, allow_infinity=False),
            "whole": st.none() | st.integers(min_value=-(2**63) + 1, max_value=2**63 - 1),
            "flag": st.booleans(),
            "names": st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
            "table": st.dictionaries(
                st.text(st.characters(exclude_categories=["Cs"])),
                st.floats(allow_nan=False, allow_infinity=False),
                max_size=3,
            ),
        },
    )
)
def test_whatever_options_a_user_writes_reach_the_plan_unchanged(shop: Any, options: dict[str, Any]) -> None:
    shop.methods = [method for method in shop.methods if method.name != "odd"]
    shop.add("adapter", "odd", config=OddOptions)
    plan = shop.plan(adapter={"use": "odd", **options})
    written = thaw(plan.step("adapter").config)
    assert {key: written[key] for key in options} == options
    assert Plan.from_json(plan.to_json()) == plan


def test_the_hash_is_the_same_in_another_process(plan: Plan) -> None:
    hashes = set()
    for seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", CODE], input=plan.to_json(), env=environment, capture_output=True, text=True, check=True
        )
        hashes.add(done.stdout.strip())
    assert hashes == {plan.hash}
    assert len(plan.hash) == 16
    int(plan.hash, 16)


@pytest.mark.parametrize(
    "keys",
    [
        {"adapter": {"rank": 4}},
        {"adapter": "whole"},
        {"optimizer": {"lr": 2e-3}},
        {"optimizer": {"lr": 1e-3}, "train": {"seed": 1}},
        {"optimizer": {"lr": 1e-3}, "data": {"train": ["other.jsonl"]}},
        {"optimizer": {"lr": 1e-3}, "precision": "bf16"},
        {"optimizer": {"lr": 1e-3}, "model": "another"},
        {"optimizer": {"lr": 1e-3}, "patches": []},
    ],
)
def test_the_hash_tells_apart_what_trains_differently(shop: Any, keys: dict[str, Any]) -> None:
    shop.add("patches", "bits", priority=3)
    assert shop.plan(**keys).hash != shop.plan(optimizer={"lr": 1e-3}).hash


def test_the_hash_does_not_depend_on_the_output_folder_nor_on_reasons(shop: Any) -> None:
    assert shop.plan(output="here").hash == shop.plan(output="there").hash
    assert shop.plan(adapter="thin").hash == shop.plan().hash
    assert shop.plan(adapter="thin") != shop.plan()


@pytest.mark.parametrize("key", ["log_every", "save_every", "keep_checkpoints"])
def test_the_hash_does_not_depend_on_when_is_reported_and_saved(shop: Any, key: str) -> None:
    assert shop.plan(train={key: 5}).hash == shop.plan().hash
    assert shop.plan(train={key: 5}) != shop.plan()
    assert shop.plan(train={"accumulation": 5}).hash != shop.plan().hash


def test_the_hash_depends_on_who_provides_a_method(plan: Plan) -> None:
    steps = (dataclasses.replace(plan.steps[0], provider="somebody else 9"), *plan.steps[1:])
    assert dataclasses.replace(plan, steps=steps).hash != plan.hash


def test_a_plan_cannot_be_changed(plan: Plan) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.device = "cuda"  # type: ignore[misc]
    for mapping in (plan.config, plan.load_options, plan.steps[0].config, plan.profile.roles, plan.config["train"]):
        assert isinstance(mapping, FrozenDict)
        with pytest.raises(TypeError):
            mapping["x"] = 1  # type: ignore[index]

    def immutable(value: Any) -> bool:
        if isinstance(value, list | dict | set):
            return False
        if dataclasses.is_dataclass(value):
            return all(immutable(getattr(value, field.name)) for field in dataclasses.fields(value))
        if isinstance(value, FrozenDict):
            return all(immutable(item) for item in value.values())
        return all(immutable(item) for item in value) if isinstance(value, tuple | frozenset) else True

    assert immutable(plan)


def test_what_a_plan_was_made_from_can_change_without_changing_it(shop: Any) -> None:
    options = {"rank": 4, "target": ["attn"]}
    plan = shop.plan(adapter={"use": "thin", **options})
    before = plan.to_json()
    options["target"].append("mlp")  # type: ignore[attr-defined]
    assert plan.to_json() == before


def test_the_resolved_configuration_resolves_to_the_same_plan(shop: Any) -> None:
    shop.add("patches", "bits", priority=3).add("patches", "shy")
    for keys in ({}, {"optimizer": {"lr": 0.5}}, {"patches": ["shy"]}, {"patches": []}, {"adapter": "whole"}):
        plan = shop.plan(**keys)
        resolved = thaw(plan.config)
        again = shop.resolve(parse_config(resolved))
        assert again.hash == plan.hash
        assert again.config == plan.config
        assert all(step.why == "named in the configuration" for step in again.steps)
        # The same by way of a YAML file, which is how a run leaves it.
        assert shop.resolve(parse_config(yaml.safe_load(yaml.safe_dump(resolved)))).hash == plan.hash


def test_the_document_for_tools_has_no_problems_and_the_hash(plan: Plan) -> None:
    document = json.loads(plan.to_json())
    assert document["problems"] == []
    assert document["hash"] == plan.hash
    assert {"model", "profile", "steps", "load_options", "warnings", "rejected", "memory"} <= set(document)
    assert set(document["memory"]) == {"weights", "gradients", "optimizer", "activations", "peak"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "5",
        "null",
        "{}",
        '{"version": 999}',
        '{"version": 1}',
        '{"version": 1, "steps": 5}',
        '{"version": 1, "steps": "abc"}',
        '{"version": 1, "model": {"nmae": "x"}}',
        '{"version": 1, "model": 3}',
        '{"version": 1, "profile": {"attention": [null]}}',
        "[" * 5000,
        '{"version": 1, "config": ' + '{"a":' * 3000 + "1" + "}" * 3001,
    ],
)
def test_text_that_is_no_plan_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Plan.from_json(text)


def test_a_plan_of_another_version_says_what_to_do(plan: Plan) -> None:
    document = plan.to_plain() | {"version": 2}
    with pytest.raises(ValueError, match="plan again"):
        Plan.from_plain(document)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=4))
def test_frozen_data_hashes_by_content_whatever_the_order(data: dict[str, Any]) -> None:
    turned = dict(reversed(data.items()))
    assert freeze(data) == freeze(turned)
    assert hash(freeze(data)) == hash(freeze(turned))
    assert canonical_json(freeze(data)) == canonical_json(turned)
    assert thaw(freeze(data)) == data
    assert json.loads(canonical_json(data)) == data


def test_a_frozen_mapping_goes_to_another_process_without_its_hash() -> None:
    """Hashes of texts differ between processes: with the one from here, equal mappings would not be found there."""
    import os
    import pickle
    import subprocess
    import sys

    mapping = freeze({"mood": "fine", "deep": {"n": [1, 2]}})
    hash(mapping)
    code = "import pickle, sys; one = pickle.load(sys.stdin.buffer); print(one in {type(one)(dict(one)): 1})"
    for seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(mapping),
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        assert told.stdout == b"True\n"
