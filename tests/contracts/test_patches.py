"""Every installed model patch keeps the contract of patches, on every kind of model that it says yes to.

A quick run takes the first set of options on all kinds, and the others on llama; the rest is `slow`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from luthier.core.testing import Case, ModelPatchContract
from luthier.core.testing.surroundings import installed_catalog

# By name; a patch without an entry runs with its own example.
OPTIONS: dict[str, Sequence[Mapping[str, Any]]] = {
    "checkpointing": ({}, {"every": 2}, {"layers": [0]}),
    "fp4": ({}, {"double_quant": False, "storage_dtype": "bfloat16"}),
    "int8": ({}, {"threshold": 0.0, "skip": ["mlp"]}),
    "new_tokens": ({}, {"init": "random", "pad_to_multiple_of": 64}),
    "nf4": ({}, {"double_quant": False, "compute_dtype": "float32"}, {"skip": ["attn"]}),
    "rope_scaling": ({"type": "yarn"}, {"type": "linear"}, {"type": "dynamic"}, {"type": "llama3"}),
}
# Checkpoints that arrive quantised, for a patch that is about these.
QUANTISED = {
    kind: {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    for kind in ("llama", "mixtral")
}
CHANGES: dict[str, Mapping[str, Mapping[str, Any]]] = {"dequantize": QUANTISED}


def marks(contract: ModelPatchContract, case: Case) -> Sequence[pytest.MarkDecorator]:
    first = next(iter(contract.cases()))
    return () if case.kind == "llama" or case.options == first.options else (pytest.mark.slow,)


for _name in sorted(installed_catalog().slot("patches")):
    _parts = {"method": _name, "options": OPTIONS.get(_name, ({},)), "marks": marks, "changes": CHANGES.get(_name, {})}
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (ModelPatchContract,), _parts)


def test_the_table_names_patches_that_exist() -> None:
    assert {*OPTIONS, *CHANGES} <= set(installed_catalog().slot("patches"))
