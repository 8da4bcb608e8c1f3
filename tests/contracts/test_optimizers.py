"""Every installed optimizer keeps the contract of optimizers, on every kind of model that it says yes to.

A quick run takes llama and mixtral (experts of three dimensions) with the first set of options, and llama with the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from luthier.core.testing import Case, OptimizerContract
from luthier.core.testing.surroundings import installed_catalog

# By name; an optimizer without an entry runs with its own example.
OPTIONS: dict[str, Sequence[Mapping[str, Any]]] = {
    "adafactor": ({}, {"scale_parameter": True}),
    "apollo": ({"rank": 4}, {"rank": 1, "scale_type": "tensor"}, {"rank": 4, "update_proj_gap": 2}),
    "badam": ({"switch_every": 2}, {"switch_every": 2, "order": "ascending", "embeddings": False}),
    "galore": (
        {"rank": 8},
        {"rank": 8, "refresh": 2},
        {"rank": 8, "svd": "randomized", "refresh": 2},
        {"rank": 8, "layerwise": True, "refresh": 2},
        {"rank": 8, "proj_type": "reverse_std"},
        {"rank": 8, "backend": "galore-torch", "refresh": 2},
        {"rank": 8, "roles": ["attn"]},
    ),
    "lora_plus": ({}, {"ratio": 4.0}),
    "muon": ({}, {"adjust": "original", "nesterov": False}),
    "sgd": ({}, {"momentum": 0.0}, {"nesterov": True}),
}
# Where a hundredth of the weights' size in twelve steps is too far or too short a way.
RATES: dict[str, float] = {}


def marks(contract: OptimizerContract, case: Case) -> Sequence[pytest.MarkDecorator]:
    first = next(iter(contract.cases()))
    quick = case.kind == "llama" or (case.kind == "mixtral" and case.options == first.options)
    return () if quick else (pytest.mark.slow,)


for _name in sorted(installed_catalog().slot("optimizer")):
    _parts = {"method": _name, "options": OPTIONS.get(_name, ({},)), "marks": marks, "lr": RATES.get(_name, 1e-2)}
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (OptimizerContract,), _parts)


def test_the_table_names_optimizers_that_exist() -> None:
    assert {*OPTIONS, *RATES} <= set(installed_catalog().slot("optimizer"))
