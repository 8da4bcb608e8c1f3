"""A tiny model whose weights were quantised while it was loaded, as a run has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.calling import call
from luthier.core.context import BuildContext
from luthier.core.dequantize import is_quantized_linear
from luthier.core.loading import load_model
from luthier.registry.catalog import discover

SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mixtral": {"num_local_experts": 4},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
}
BITS = ("nf4", "fp4", "int8")
FORMATS = {"fp32": ("float32", "float32"), "bf16": ("bfloat16", "bfloat16"), "mixed": ("float32", "bfloat16")}


class Loaded:
    """A tiny model as a run has it after its patches of phase "loaded"."""

    def __init__(self, folder: Path, use: str, precision: str = "fp32", **options: Any) -> None:
        import luthier

        rows = folder.parent / "rows.jsonl"
        rows.write_text('{"instruction": "a", "output": "b"}\n')
        config = {
            "model": str(folder),
            "data": {"train": [str(rows)]},
            "stage": "sft",
            "adapter": "lora",
            "patches": [{"use": use, **options}],
            "precision": precision,
            "output": str(folder.parent / "run"),
        }
        self.plan = luthier.plan(config)
        self.profile = self.plan.profile
        self.patch: Any = discover().method("patches", use)
        self.options = self.patch.config(**options)
        self.notices: list[str] = []
        self.model: Any = load_model(self.plan)
        self.context = BuildContext(precision=self.plan.precision, notice=self.notices.append)
        self.undo = call(self.patch.apply, self.model, self.profile, self.options, context=self.context)

    @property
    def layers(self) -> dict[str, Any]:
        return {name: module for name, module in self.model.named_modules() if is_quantized_linear(module)}


@pytest.fixture
def quantised(tiny_folder: Callable[..., Path]) -> Callable[..., Loaded]:
    """`quantised("gpt2", "nf4", "bf16", skip=[...])`."""

    def make(kind: str, use: str, precision: str = "fp32", **options: Any) -> Loaded:
        return Loaded(tiny_folder(kind, **SMALL.get(kind, {})), use, precision, **options)

    return make
