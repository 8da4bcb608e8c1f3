"""Precision: decided from measured rates and from whether base weights train; or asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.environment import MatmulRate
from luthier.core.frozen import FrozenDict
from luthier.core.resolve.precision import decide_precision

FROZEN = frozenset({"base.frozen"})
TRAINED = frozenset({"params.full_rank"})


def rates(fp32: float, bf16: float) -> FrozenDict[str, MatmulRate]:
    return FrozenDict({"float32": MatmulRate(gflops=fp32, error=1e-6), "bfloat16": MatmulRate(gflops=bf16, error=3e-3)})


@pytest.mark.parametrize(
    ("fp32", "bf16", "facts", "chosen"),
    [
        (100, 400, FROZEN, "bf16"),
        (100, 400, TRAINED, "mixed"),
        (100, 400, frozenset({"base.partly_frozen"}), "mixed"),
        (100, 80, FROZEN, "fp32"),
        (100, 100, FROZEN, "fp32"),
        (100, 114, FROZEN, "fp32"),
        (100, 115, FROZEN, "bf16"),
        (0, 100, FROZEN, "fp32"),
    ],
)
def test_auto_follows_the_probe(
    environments: Callable[..., Any], fp32: float, bf16: float, facts: frozenset[str], chosen: str
) -> None:
    precision, warnings = decide_precision("auto", environments(matmul=rates(fp32, bf16)), facts)
    assert precision.name == chosen
    assert not warnings
    assert precision.autocast == (chosen == "mixed")


def test_the_reason_has_the_measured_numbers(environments: Callable[..., Any]) -> None:
    precision, _ = decide_precision("auto", environments(matmul=rates(71, 312)), FROZEN)
    assert "bf16 312 GFLOP/s, fp32 71 GFLOP/s" in precision.why
    assert "the base weights are frozen" in precision.why


def test_a_small_advantage_is_said_to_be_too_small(environments: Callable[..., Any]) -> None:
    precision, _ = decide_precision("auto", environments(matmul=rates(100, 110)), FROZEN)
    assert "1.15 times as fast" in precision.why


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")])
def test_without_a_probe_a_cuda_device_is_known_by_its_capability(
    environments: Callable[..., Any], capability: tuple[int, int], chosen: str
) -> None:
    precision, _ = decide_precision("auto", environments(device="cuda", capability=capability), FROZEN)
    assert precision.name == chosen
    assert f"{capability[0]}.{capability[1]}" in precision.why


def test_the_probe_goes_before_the_capability(environments: Callable[..., Any]) -> None:
    machine = environments(device="cuda", capability=(9, 0), matmul=rates(100, 50))
    assert decide_precision("auto", machine, FROZEN)[0].name == "fp32"


def test_nothing_known_means_fp32(environments: Callable[..., Any]) -> None:
    precision, _ = decide_precision("auto", environments(), FROZEN)
    assert (precision.name, precision.weights, precision.compute) == ("fp32", "float32", "float32")
    assert "not run" in precision.why


@pytest.mark.parametrize(
    ("asked", "weights", "compute"),
    [("fp32", "float32", "float32"), ("bf16", "bfloat16", "bfloat16"), ("mixed", "float32", "bfloat16")],
)
def test_what_is_asked_for_is_taken(environments: Callable[..., Any], asked: str, weights: str, compute: str) -> None:
    precision, warnings = decide_precision(asked, environments(matmul=rates(100, 400)), FROZEN)
    assert (precision.name, precision.weights, precision.compute) == (asked, weights, compute)
    assert precision.why == "asked for in the configuration"
    assert not warnings


def test_bfloat16_weights_that_train_are_warned_about(environments: Callable[..., Any]) -> None:
    _, warnings = decide_precision("bf16", environments(), TRAINED)
    assert len(warnings) == 1
    assert "1/256" in warnings[0]


@pytest.mark.parametrize(
    ("machine", "warned"),
    [
        ({"matmul": rates(100, 60)}, True),
        ({"matmul": rates(100, 110)}, False),
        ({"matmul": rates(100, 400)}, False),
        ({"device": "cuda", "capability": (7, 5)}, True),
        ({"device": "cuda", "capability": (8, 0)}, False),
        ({}, False),
    ],
)
def test_bfloat16_that_is_asked_for_and_slower_is_warned_about(
    environments: Callable[..., Any], machine: dict[str, Any], warned: bool
) -> None:
    _, warnings = decide_precision("bf16", environments(**machine), FROZEN)
    assert any("slower than fp32" in warning for warning in warnings) == warned
    assert not decide_precision("fp32", environments(**machine), FROZEN)[1]


def test_the_plan_decides_from_the_chosen_adapter(shop: Any, environments: Callable[..., Any]) -> None:
    shop.environment = environments(matmul=rates(100, 400))
    assert shop.plan(adapter="thin").precision.name == "bf16"
    assert shop.plan(adapter="whole").precision.name == "mixed"
    assert shop.plan(adapter="whole", precision="fp32").precision.name == "fp32"
