"""Modules that train in whole: float32 beside a bfloat16 base, computing as their neighbours do, tied as the model ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.plugins import lora
from luthier.plugins.lora import LoraConfig


def attached(kit: Any, kind: str, dtype: torch.dtype, *names: str) -> Any:
    model, profile = kit.load(kind)
    config = LoraConfig(rank=2, target=("attn",), modules_to_save=names)
    assert lora.supports(profile, kit.here, config)
    return lora.attach(model.to(dtype), profile, config, kit.context)


@pytest.mark.parametrize("names", [("embed",), ("head",), ("norm",), ("mlp",)])
def test_copies_are_float32_and_compute_in_bfloat16(kind: str, kit: Any, names: tuple[str, ...]) -> None:
    if kind == "mixtral" and names == ("mlp",):
        names = ("embed", "norm")
    base, _ = kit.load(kind)
    before = kit.logits(base.to(torch.bfloat16))
    model = attached(kit, kind, torch.bfloat16, *names)
    assert {parameter.dtype for parameter in kit.trained(model).values()} == {torch.float32}
    after = kit.logits(model)
    assert after.dtype == torch.bfloat16
    assert (after - before).abs().max() <= 0.02 * before.abs().max()


def test_small_updates_are_not_swallowed(kit: Any) -> None:
    """A thousandth of a weight is less than bfloat16 can add to it, and is kept."""
    model = attached(kit, "llama", torch.bfloat16, "head")
    weight = next(parameter for name, parameter in kit.trained(model).items() if "lm_head" in name)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.001)
    assert torch.allclose(weight / before, torch.tensor(1.001), atol=1e-5)
    assert torch.equal((before.bfloat16() * 1.001).bfloat16(), before.bfloat16())  # what would have happened
    batch = next(iter(kit.batches(1)))
    model(**batch).loss.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_tied_ones_share_one_matrix(kind: str, kit: Any) -> None:
    for names in (("embed",), ("head",), ("embed", "head")):
        model = attached(kit, kind, torch.bfloat16, *names)
        base = model.get_base_model()
        copies = [
            module.modules_to_save["default"] for module in (base.get_input_embeddings(), base.get_output_embeddings())
        ]
        assert copies[0].weight is copies[1].weight
        matrices = [parameter for parameter in kit.trained(model).values() if parameter.shape == copies[0].weight.shape]
        assert len(matrices) == 1


def test_folded_in_they_are_the_model_s_own(kit: Any) -> None:
    model = attached(kit, "gemma2", torch.bfloat16, "embed", "norm")
    kit.train(model)
    before = kit.logits(model).float()
    merged = lora.merge(model)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert not [module for module in merged.modules() if type(module).__name__.startswith("Wide")]
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert (kit.logits(merged).float() - before).abs().max() <= 0.05 * before.abs().max()


def test_quantised_ones_are_refused(kit: Any) -> None:
    _, profile = kit.load("llama")
    (method,) = lora.luthier_adapters()
    inside = method.declaration(profile, LoraConfig(target=("attn",), modules_to_save=("mlp.down",)))
    assert "mlp.down_proj in whole" in inside.reasons["weights.quantized"]
    assert "weights.quantized" not in method.declaration(profile, LoraConfig(modules_to_save=("head",))).conflicts
