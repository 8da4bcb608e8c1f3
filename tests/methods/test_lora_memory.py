"""What LoRA keeps for the backward pass, counted by autograd's own hooks, against the forecast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.core.memory import forecast
from luthier.core.plan import Precision
from luthier.plugins.lora import LoraConfig, attach, memory
from luthier.registry.detect import detect

TOKENS = 64
SIZES = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def kept_by_the_layers(model: Any) -> int:
    """Bytes that the decoder layers keep, each storage once; weights are there anyway."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is given out twice
        return tensor

    ids = torch.randint(0, 64, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("weights", "low", "high"),
    # In float32 the forecast counts inputs that frozen projections need not keep: it may say more, never less.
    [("bfloat16", 0.95, 1.05), ("float32", 1.0, 1.5)],
)
def test_the_forecast_of_what_lora_keeps(weights: Any, low: float, high: float) -> None:
    config = LlamaConfig(**SIZES, attn_implementation="sdpa")  # type: ignore[arg-type]
    profile, options = detect(config), LoraConfig(rank=8)
    model = attach(LlamaForCausalLM(config).to(getattr(torch, weights)), profile, options)
    precision = Precision(name="fp32", weights=weights, compute=weights, why="")
    predicted = forecast(profile, [memory(profile, options)], precision, TOKENS).activations
    without_logits = predicted - TOKENS * 64 * (12 + (2 if weights == "bfloat16" else 4))
    assert low < without_logits / kept_by_the_layers(model) < high
