"""Every installed adapter keeps the contract of adapters, on every kind of model that it says yes to.

A quick run takes the first set of options on all kinds, and the others on llama; the rest is `slow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from luthier.core.testing import AdapterContract, Case
from luthier.core.testing.surroundings import installed_catalog

# By name; an adapter without an entry runs with its own example.
OPTIONS: dict[str, Sequence[Mapping[str, Any]]] = {
    "lora": (
        {"rank": 8},
        {"rank": 4, "target": ["attn"], "rslora": True, "alpha": 8.0, "dropout": 0.1},
        {"rank": 4, "target": ["mlp"], "exclude": ["mlp.down"], "layers": [-1], "init": "gaussian"},
        {"rank": 4, "rank_pattern": {"attn": 2}, "alpha_pattern": {"mlp": 3.0}},
        {"rank": 4, "bias": "lora_only"},
        {"rank": 4, "bias": "all"},
        {"rank": 4, "modules_to_save": ["embed", "head"]},
        {"rank": 4, "modules_to_save": ["norm"]},
        {"rank": 4, "trainable_tokens": [195, 251]},
        {"rank": 4, "target": ["attn", "experts"]},
        {"rank": 4, "init": "pissa"},
        {"rank": 4, "init": "olora"},
        {"rank": 4, "init": "eva"},
        {"rank": 4, "init": "corda"},
    ),
    "dora": (
        {"rank": 8},
        {"rank": 4, "target": ["attn"], "dropout": 0.1},
        {"rank": 4, "layers": [0], "modules_to_save": ["head"]},
        {"rank": 4, "trainable_tokens": [195, 251]},
    ),
    "oft": (
        {"block_size": 8},
        {"blocks": 4, "target": ["attn"]},
        {"block_size": 8, "share_blocks": True, "layers": [1]},
        {"block_size": 8, "cayley": "exact"},
        {"block_size": 8, "constrained": True, "eps": 50.0},  # on the border the gradient is that before the projection
    ),
    "freeze": (
        {"layers": 1},
        {"layers": -1, "embeddings": True},
        {"layers": [0], "target": ["attn", "norm"], "extra": ["norm"]},
        {"layers": 0, "extra": ["head"]},
    ),
    "llama_pro": ({}, {"blocks": 2}),
    "peft": (
        {"tuner": "ia3"},
        {"tuner": "vera", "options": {"r": 4}},
        {"tuner": "lokr", "options": {"r": 4}},
        {"tuner": "loha", "options": {"r": 4}},
        {"tuner": "ln_tuning"},
        {"tuner": "prompt_tuning", "options": {"num_virtual_tokens": 4}},
    ),
}
# The norm of DoRA's updated weight is a constant of its backward pass (Liu et al. 2024, section 4.3).
APPROXIMATE = {"dora"}


def marks(contract: AdapterContract, case: Case) -> Sequence[pytest.MarkDecorator]:
    first = next(iter(contract.cases()))
    return () if case.kind == "llama" or case.options == first.options else (pytest.mark.slow,)


for _name in sorted(installed_catalog().slot("adapter")):
    _parts = {
        "method": _name,
        "options": OPTIONS.get(_name, ({},)),
        "marks": marks,
        "exact_gradients": _name not in APPROXIMATE,
    }
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (AdapterContract,), _parts)


def test_the_table_names_adapters_that_exist() -> None:
    assert set(OPTIONS) <= set(installed_catalog().slot("adapter"))
