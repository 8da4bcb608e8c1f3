"""A tiny model of each kind that the first methods must cope with, and its profile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# gpt2: Conv1D and fused qkv; phi3: fused qkv and gate_up; gemma2: soft-capping and sliding windows; mixtral: fused experts.
KINDS = ("llama", "qwen3", "gpt2", "phi3", "gemma2", "mixtral")
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mixtral": {"num_local_experts": 4},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(tiny_folder: Callable[..., Path]) -> Callable[[str], tuple[Any, Any]]:
    """`load("gpt2") -> (model, profile)`, float32, in evaluation mode."""

    def make(model_type: str) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM

        from luthier.registry.detect import detect

        folder = tiny_folder(model_type, **SMALL.get(model_type, {}))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), detect(folder)

    return make


@pytest.fixture
def ids() -> Any:
    """Two rows of twelve token ids."""
    import torch

    return torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(1))
