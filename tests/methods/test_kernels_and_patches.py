"""`eager` and `sdpa` agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.options import NoOptions
from luthier.plugins import sdpa

Load = Callable[[str], tuple[Any, Any]]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "phi3", "mixtral"])
def test_sdpa_and_eager_agree(model_type: str, load: Load, ids: torch.Tensor) -> None:
    model, profile = load(model_type)
    assert sdpa.supports(profile, None, NoOptions())  # type: ignore[arg-type]
    logits = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert (logits[0] - logits[1]).abs().max() < 1e-5


def test_sdpa_says_no_without_attention(tiny_folder: Callable[..., Path]) -> None:
    from transformers import MambaConfig

    from luthier.registry.detect import detect

    profile = detect(MambaConfig(num_hidden_layers=2))
    assert not sdpa.supports(profile, None, NoOptions())  # type: ignore[arg-type]
