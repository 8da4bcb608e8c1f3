"""Where LoRA starts: each initialisation against its paper's formula in float64, and PEFT's where PEFT has it right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

TAKEN_OUT = ("pissa", "olora", "corda")


def layer_of(model: Any, kind: str, leaf: str) -> Any:
    return next(
        module
        for name, module in model.named_modules()
        if name.endswith(f".{leaf}") and hasattr(module, "lora_A") and ".0." in name
    )


def weight_of(model: Any, name: str) -> torch.Tensor:
    """(out, in) in float64."""
    module = model.get_submodule(name)
    weight = module.weight.detach().double()
    return weight.T if type(module).__name__ == "Conv1D" else weight


@pytest.mark.parametrize("init", [*TAKEN_OUT, "eva", "gaussian", "default"])
def test_the_output_stays_as_it_was(kind: str, kit: Any, init: str) -> None:
    base = kit.base_logits(kind)
    model, _, _ = kit.attach(kind, rank=4, init=init)
    assert (kit.logits(model) - base).abs().max() <= 2e-5 * base.abs().max()


@pytest.mark.parametrize("init", TAKEN_OUT)
def test_the_adapter_off_is_another_model(kit: Any, init: str) -> None:
    """Why it is no reference for DPO, and is not declared as one."""
    base = kit.base_logits("llama")
    model, profile, config = kit.attach("llama", rank=4, init=init)
    with model.disable_adapter():
        assert (kit.logits(model) - base).abs().max() > 1e-3
    assert "reference.by_disabling" not in kit.adapter("lora").declaration(profile, config).provides
    assert "reference.by_disabling" in kit.adapter("lora").declaration(profile, type(config)()).provides


def test_pissa_is_the_leading_part_of_the_weight(kind: str, kit: Any) -> None:
    original, _ = kit.load(kind)
    model, _, _ = kit.attach(kind, rank=4, alpha=6, init="pissa")
    checked = 0
    for name, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or hasattr(layer, "parameter_name"):
            continue
        weight = weight_of(original, name.removeprefix("base_model.model."))
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        best = left[:, :4] * values[:4] @ right[:4]
        a, b = layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()
        assert torch.allclose(1.5 * b @ a, best, atol=1e-5)
        # Each factor has half of the size: the norms of the rows of A are those of the columns of B.
        assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-4)
        checked += 1
    assert checked


def test_pissa_and_olora_are_peft_s(kit: Any) -> None:
    from peft import LoraConfig, get_peft_model

    for init in ("pissa", "olora"):
        base, _ = kit.load("llama")
        theirs = get_peft_model(
            base, LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=init)
        )
        ours, _, _ = kit.attach("llama", rank=4, alpha=6, init=init, target=("attn.q", "mlp.down"))
        for leaf in ("q_proj", "down_proj"):
            one, other = layer_of(ours, "llama", leaf), layer_of(theirs, "llama", leaf)
            product = one.lora_B["default"].weight @ one.lora_A["default"].weight
            expected = other.lora_B["default"].weight @ other.lora_A["default"].weight
            assert torch.allclose(product, expected, atol=1e-6), init
            assert torch.allclose(one.base_layer.weight, other.base_layer.weight, atol=1e-6), init


def test_a_randomised_svd_is_nearly_the_exact_one(kit: Any) -> None:
    original, _ = kit.load("llama")
    weight = weight_of(original, "model.layers.0.self_attn.q_proj")
    model, _, _ = kit.attach("llama", rank=4, init="pissa", svd_iterations=4)
    layer = layer_of(model, "llama", "q_proj")
    left = weight - 2 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).double()
    least = torch.linalg.svdvals(weight)[4:].square().sum().sqrt()
    assert least < left.norm() < 1.02 * least


def test_olora_columns_are_orthonormal(kind: str, kit: Any) -> None:
    """On GPT-2 too, whose weights lie the other way round."""
    original, _ = kit.load(kind)
    model, _, _ = kit.attach(kind, rank=4, init="olora", target=("attn",))
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            b = layer.lora_B["default"].weight.detach().double()
            assert torch.allclose(b.T @ b, torch.eye(4, dtype=torch.float64), atol=1e-5)
            weight = weight_of(original, name.removeprefix("base_model.model."))
            # R = Q' W, so the rows of A are what is left of W in the directions of B.
            assert torch.allclose(layer.lora_A["default"].weight.detach().double(), b.T @ weight, atol=1e-5)


def inputs_of(kit: Any, kind: str, leaf: str, *, batches: int = 3, trained_only: bool) -> torch.Tensor:
    """Float64 inputs of the first layer's module `leaf` over some batches, (tokens, in)."""
    model, _ = kit.load(kind)
    name = next(name for name, _ in model.named_modules() if name.endswith(f".{leaf}"))
    seen: list[torch.Tensor] = []
    mask: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].reshape(*mask[-1].shape, -1)[mask[-1]])
    )
    for batch in kit.batches(batches):
        present = batch["attention_mask"].bool()
        mask.append(present & (batch["labels"] != -100) if trained_only else present)
        kit_inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            model(**kit_inputs)
    return torch.cat(seen).double()


@pytest.mark.parametrize("leaf", ["q_proj", "v_proj", "down_proj"])
@pytest.mark.parametrize(("batches", "share"), [(1, 0.999), (3, 0.97)])
def test_eva_finds_the_leading_directions_of_the_inputs(kit: Any, leaf: str, batches: int, share: float) -> None:
    """By pieces it finds nearly what a singular value decomposition of all inputs at once finds."""
    rows = inputs_of(kit, "llama", leaf, batches=batches, trained_only=True)
    centred = rows - rows.mean(0)
    values = torch.linalg.svdvals(centred)
    model, _, _ = kit.attach("llama", rank=4, init="eva", init_batches=batches)
    found = layer_of(model, "llama", leaf).lora_A["default"].weight.detach().double()
    assert torch.allclose(found @ found.T, torch.eye(4, dtype=torch.float64), atol=1e-4)
    kept, most = (centred @ found.T).square().sum(), values[:4].square().sum()
    assert share * most <= kept <= 1.0001 * most


def test_corda_takes_the_leading_directions_under_the_inputs_covariance(kit: Any) -> None:
    """W C = U S V', B A = U_r S_r (V_r' C^-1): more of the products with the inputs than the leading part of W holds."""
    original, _ = kit.load("llama")
    model, _, _ = kit.attach("llama", rank=4, alpha=4, init="corda", init_batches=3)
    layer = layer_of(model, "llama", "q_proj")
    product = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().double()
    weight = weight_of(original, "model.layers.0.self_attn.q_proj")
    rows = inputs_of(kit, "llama", "q_proj", trained_only=False)
    plain = torch.linalg.svd(weight, full_matrices=False)
    best_of_weight = plain[0][:, :4] * plain[1][:4] @ plain[2][:4]
    ours, theirs = ((rows @ (weight - part).T).norm() for part in (product, best_of_weight))
    assert torch.linalg.matrix_rank(product, rtol=1e-5) == 4
    assert ours < theirs < (rows @ weight.T).norm()


@pytest.mark.parametrize("precision", ["4bit", "8bit"])
@pytest.mark.parametrize(("kind", "small"), [("llama", {}), ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4})])
def test_loftq_makes_the_quantised_model_more_like_the_original(
    tiny_folder: Any, kit: Any, kind: str, small: dict[str, Any], precision: str
) -> None:
    """On GPT-2 too, whose weights lie the other way round in its files only; its attn.c_proj is square."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from luthier.plugins import lora
    from luthier.plugins._peft.low_rank import base_weight
    from luthier.registry.detect import detect

    folder = tiny_folder(kind, **small)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    bits = BitsAndBytesConfig(**(four if precision == "4bit" else {"load_in_8bit": True}))
    quantised = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=bits)
    config = lora.LoraConfig(rank=8, alpha=4, init="loftq")
    model = lora.attach(quantised, detect(folder), config, kit.context)
    shapes = set()
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            weight = weight_of(original, name.removeprefix("base_model.model."))
            error = weight - base_weight(layer).double()
            left, values, right = torch.linalg.svd(error, full_matrices=False)
            product = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
            assert torch.allclose(0.5 * product, left[:, :8] * values[:8] @ right[:8], atol=1e-5)
            # What is left of the error, by the original: as little as any update of this rank leaves.
            left_over = (error - 0.5 * product).norm() / error.norm()
            assert torch.isclose(left_over, values[8:].norm() / values.norm(), rtol=1e-3)
            shapes.add(tuple(weight.shape))
    assert (64, 64) in shapes
    with model.disable_adapter():
        without = (kit.logits(model) - kit.logits(original)).norm()
    # Rank 8 is less of GPT-2's wider matrices; and what int8 rounds of the activations, no update of the weights takes back.
    share = 0.8 if (kind, precision) == ("llama", "4bit") else 1.0
    assert (kit.logits(model) - kit.logits(original)).norm() < share * without


def test_loftq_needs_quantised_weights(kit: Any) -> None:
    from luthier.core.contracts import NothingPatched

    _, profile = kit.load("llama")
    declared = kit.adapter("lora").declaration(profile, kit.adapter("lora").config(init="loftq"))
    assert [str(need) for need in declared.requires] == ["weights.quantized"]
    with pytest.raises(NothingPatched, match="none of the adapted layers is quantised"):
        kit.attach("llama", init="loftq")


@pytest.mark.parametrize("init", ["pissa", "olora", "corda"])
def test_quantised_weights_are_refused_with_the_reason(kit: Any, init: str) -> None:
    _, profile = kit.load("llama")
    declared = kit.adapter("lora").declaration(profile, kit.adapter("lora").config(init=init))
    assert "weights.quantized" in declared.conflicts
    assert init in declared.reasons["weights.quantized"]


def test_more_directions_than_the_matrix_has(kit: Any) -> None:
    assert "no 33 directions in model.layers.0.self_attn.k_proj" in kit.refusal("llama", rank=33, init="pissa")
    assert "rank: 32 or less" in kit.refusal("llama", rank=33, init="pissa")


def test_the_model_trains_on_in_the_mode_that_it_was_in(kit: Any) -> None:
    """The initialisations that run the model do so in evaluation mode, and put it back."""
    model, profile = kit.load("llama")
    model.train()
    for init in ("eva", "corda"):
        adapted = kit.adapter("lora").attach(
            model, profile, kit.adapter("lora").config(init=init, rank=4), context=kit.context
        )
        assert all(module.training for module in adapted.modules())
        model = adapted.unload()


def test_no_rows_no_eva(kit: Any) -> None:
    from luthier.core.errors import DataError
    from luthier.plugins import lora

    model, profile = kit.load("llama")
    with pytest.raises(DataError, match="no training rows"):
        lora.attach(model, profile, lora.LoraConfig(init="eva"))


def test_bf16_base(kit: Any, tmp_path: Path) -> None:
    """The factors stay float32, and the model starts as it was to the precision of its weights."""
    model, profile = kit.load("llama")
    model = model.to(torch.bfloat16)
    before = kit.logits(model).float()
    adapter = kit.adapter("lora")
    adapted = adapter.attach(model, profile, adapter.config(init="pissa", rank=4))
    assert {parameter.dtype for parameter in kit.trained(adapted).values()} == {torch.float32}
    assert (kit.logits(adapted).float() - before).norm() < 0.02 * before.norm()
