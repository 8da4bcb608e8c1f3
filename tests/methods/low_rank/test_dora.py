"""DoRA against its paper's formula (arXiv:2402.09353, equation 5) in float64, and what it declares."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.core.memory import layer_elements_per_token
from luthier.plugins import dora, lora
from luthier.plugins.dora import DoraConfig


def trained_layer(kit: Any, kind: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """(an adapted layer in float64 after some training, its base weight (out, in), its bias)"""
    model, _, _ = kit.attach(kind, "dora", rank=4, alpha=6)
    kit.train(model)
    layer = next(module for module in model.double().modules() if hasattr(module, "lora_A"))
    base = layer.get_base_layer()
    weight = base.weight.detach().T if type(base).__name__ == "Conv1D" else base.weight.detach()
    bias = base.bias.detach() if getattr(base, "bias", None) is not None else torch.zeros(len(weight)).double()
    return layer, weight, bias


def test_the_forward_is_the_formula(kind: str, kit: Any) -> None:
    """y = m (W + s B A) x / |W + s B A|, the norm of each row (output) of the weight, and the bias untouched."""
    layer, weight, bias = trained_layer(kit, kind)
    direction = weight + 1.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    assert not torch.allclose(magnitude, weight.norm(dim=1), rtol=1e-3)  # it was trained
    x = torch.randn(3, 5, weight.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x @ (magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)).T + bias
    assert torch.allclose(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_takes_the_norm_as_a_constant(kit: Any) -> None:
    """Section 4.3 of the paper: |W + s B A| is detached."""
    layer, weight, _ = trained_layer(kit, "llama")
    a, b, m = (
        value.detach().clone().requires_grad_()
        for value in (
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
            layer.lora_magnitude_vector["default"].weight,
        )
    )
    x = torch.randn(7, weight.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.randn(7, weight.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    direction = weight + 1.5 * b @ a
    expected = x @ (m[:, None] * direction / direction.detach().norm(dim=1, keepdim=True)).T
    (expected - target).square().sum().backward()
    (layer(x) - target).square().sum().backward()
    ours = (layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_magnitude_vector["default"].weight)
    for one, other in zip(ours, (a, b, m), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_the_magnitude_starts_at_the_norm_and_the_model_as_it_was(kind: str, kit: Any) -> None:
    base = kit.base_logits(kind)
    model, _, _ = kit.attach(kind, "dora", rank=4)
    assert (kit.logits(model) - base).abs().max() <= 1e-5 * base.abs().max()
    kit.train(model)
    with model.disable_adapter():
        assert torch.equal(kit.logits(model), base)


def test_what_it_declares(kit: Any) -> None:
    _, profile = kit.load("llama")
    (method,) = dora.luthier_adapters()
    plain = method.declaration(profile, DoraConfig())
    assert {"base.frozen", "reference.by_disabling", "adapter.mergeable"} <= plain.provides
    assert "weights.quantized.8bit" in plain.conflicts
    assert "weights.quantized" not in plain.conflicts
    assert "int8" in plain.reasons["weights.quantized.8bit"]
    whole = method.declaration(profile, DoraConfig(modules_to_save=("embed",)))
    assert {"base.frozen", "reference.by_disabling"} <= whole.provides  # a copy trains
    biases = method.declaration(profile, DoraConfig(bias="all"))
    assert "base.partly_frozen" in biases.provides
    assert not {"base.frozen", "reference.by_disabling"} & biases.provides


def test_experts_are_refused(kit: Any) -> None:
    reason = kit.refusal("mixtral", "dora", target=("attn", "experts"))
    assert "experts" in reason
    assert "leave mlp.experts" in reason


def test_quantised_to_4_bits(tiny_folder: Any, kit: Any) -> None:
    """The norm is that of the dequantised weight."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from luthier.plugins._peft.low_rank import base_weight
    from luthier.registry.detect import detect

    folder = tiny_folder("llama")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantised = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=bits)
    before = kit.logits(quantised)
    model = dora.attach(quantised, detect(folder), DoraConfig(rank=4), kit.context)
    layer: Any = next(module for module in model.modules() if hasattr(module, "lora_A"))
    assert torch.allclose(layer.lora_magnitude_vector["default"].weight, base_weight(layer).norm(dim=1), rtol=1e-4)
    assert (kit.logits(model) - before).abs().max() < 1e-4 * before.abs().max()


def kept_bytes(model: Any, tokens: int) -> int:
    """Bytes that the backward pass keeps beside the weights, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no address is given out twice
        return tensor

    ids = torch.randint(0, 64, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False)
    return sum(size for size, _ in kept.values())


def test_the_forecast_of_what_it_keeps_beyond_lora() -> None:
    """Two outputs of every adapted module for each token: of the base layer, and of the update."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.registry.detect import detect

    sizes = {
        "vocab_size": 64,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
    }
    config = LlamaConfig(**sizes, num_key_value_heads=4, attn_implementation="sdpa")  # type: ignore[arg-type]
    profile = detect(config)
    few, many = 128, 640
    grown = {}
    for name, plugin, options in (("lora", lora, lora.LoraConfig(rank=8)), ("dora", dora, DoraConfig(rank=8))):
        model = plugin.attach(LlamaForCausalLM(config), profile, options)  # type: ignore[attr-defined]
        # Per token: what does not grow with the batch is left out.
        grown[name] = (kept_bytes(model, many) - kept_bytes(model, few)) / (many - few)
    scale = dora.memory(profile, DoraConfig(rank=8)).activation_scale
    predicted = (scale - 1) * layer_elements_per_token(profile) * profile.layers * 4
    assert 0.9 < predicted / (grown["dora"] - grown["lora"]) < 1.1
