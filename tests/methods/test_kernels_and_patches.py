"""`eager` and `sdpa` agree; `checkpointing` changes memory and nothing else, and can be undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.options import NoOptions
from luthier.plugins import checkpointing, sdpa

Load = Callable[[str], tuple[Any, Any]]


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)  # the same dropout each time
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


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


def test_checkpointing_gives_the_same_gradients(kind: str, load: Load, ids: torch.Tensor) -> None:
    model, profile = load(kind)
    plain = gradients(model, ids)
    undo = checkpointing.apply(model, profile, NoOptions())
    recomputed = gradients(model, ids)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    undo()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def saved_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters not counted."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=ids, use_cache=False).last_hidden_state.sum()
    return sum(kept.values())


def test_checkpointing_keeps_less_and_predicts_how_much(tiny_folder: Callable[..., Path]) -> None:
    """With eight layers the predicted factor, less the one layer that is recomputed, is the measured one."""
    from transformers import AutoModelForCausalLM

    from luthier.registry.detect import detect

    folder = tiny_folder("llama", num_hidden_layers=8)
    profile = detect(folder)
    ids = torch.randint(0, 250, (1, 256), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = saved_bytes(model, ids)
    checkpointing.apply(model, profile, NoOptions())
    kept = saved_bytes(model, ids)
    assert kept < plain / 4
    predicted = checkpointing.memory(profile, NoOptions()).activation_scale - 1 / 8
    assert kept / plain == pytest.approx(predicted, abs=0.06)
