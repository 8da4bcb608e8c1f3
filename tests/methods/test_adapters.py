"""`full` and `lora`: what trains, what the plan predicts of it, and what attaching, disabling and merging change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from luthier.core.environment import Environment
from luthier.core.options import NoOptions
from luthier.plugins import full, lora
from luthier.plugins.lora import LoraConfig

Load = Callable[[str], tuple[Any, Any]]
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def shake(model: torch.nn.Module) -> None:
    """Give the updates an effect: B is zero at first."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def test_full_trains_everything_and_predicts_it(kind: str, load: Load) -> None:
    model, profile = load(kind)
    full.attach(model, profile, NoOptions())
    count = sum(parameter.numel() for parameter in trained(model).values())
    assert count == sum(parameter.numel() for parameter in model.parameters())
    assert full.memory(profile, NoOptions()).trainable == count


def test_lora_leaves_the_output_as_it_was(kind: str, load: Load, ids: Any) -> None:
    model, profile = load(kind)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        after = lora.attach(model, profile, LoraConfig(rank=4)).eval()(input_ids=ids).logits
    assert torch.equal(before, after)


def test_lora_trains_its_updates_and_nothing_else(kind: str, load: Load) -> None:
    model, profile = load(kind)
    adapted = lora.attach(model, profile, LoraConfig(rank=4))
    names = trained(adapted)
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}


def test_lora_predicts_its_parameters(kind: str, load: Load) -> None:
    model, profile = load(kind)
    config = LoraConfig(rank=4)
    predicted = lora.memory(profile, config)
    adapted = lora.attach(model, profile, config)
    assert predicted.trainable == predicted.added == sum(parameter.numel() for parameter in trained(adapted).values())


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        ("llama", ("attn",), {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("llama", ("attn.q", "attn.v"), {"q_proj", "v_proj"}),
        ("llama", ("all",), {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("phi3", ("all",), {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("mixtral", ("all",), {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_lora_targets_roles(kind: str, target: tuple[str, ...], expected: set[str], load: Load) -> None:
    model, profile = load(kind)
    adapted = lora.attach(model, profile, LoraConfig(rank=2, target=target))
    assert set(adapted.peft_config["default"].target_modules) == expected
    adapted_modules = {name.split(".lora_A")[0].rpartition(".")[2] for name in trained(adapted) if ".lora_A." in name}
    assert adapted_modules == expected


def test_names_that_mean_two_things_are_written_out(load: Load) -> None:
    """gpt2 calls the output projection of attention and that of the MLP both c_proj."""
    model, profile = load("gpt2")
    adapted = lora.attach(model, profile, LoraConfig(rank=2, target=("attn",)))
    adapted_modules = {name.split(".lora_A")[0] for name in trained(adapted) if ".lora_A." in name}
    layers = range(2)
    expected = {f"base_model.model.transformer.h.{i}.attn.{leaf}" for i in layers for leaf in ("c_attn", "c_proj")}
    assert adapted_modules == expected


def test_lora_scale_is_alpha_over_rank(load: Load) -> None:
    model, profile = load("llama")
    adapted = lora.attach(model, profile, LoraConfig(rank=4))
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 2.0
    model, profile = load("llama")
    layer = lora.attach(model, profile, LoraConfig(rank=4, alpha=6)).base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 1.5


def test_disabling_gives_the_base_and_merging_the_same(kind: str, load: Load, ids: Any) -> None:
    model, profile = load(kind)
    with torch.no_grad():
        base = model(input_ids=ids).logits.clone()
        adapted = lora.attach(model, profile, LoraConfig(rank=4)).eval()
        shake(adapted)
        changed = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            disabled = adapted(input_ids=ids).logits
        merged = lora.merge(adapted)(input_ids=ids).logits
    assert torch.equal(disabled, base)
    assert (changed - base).abs().max() > 1e-3
    assert (merged - changed).abs().max() < 1e-5


def test_gradients_against_float64(load: Load, ids: Any) -> None:
    """One adapted model in float32 and the same in float64: the gradients agree to single precision."""
    grads = []
    for dtype in (torch.float32, torch.float64):
        model, profile = load("llama")
        torch.manual_seed(3)
        adapted = lora.attach(model, profile, LoraConfig(rank=4))
        shake(adapted)
        adapted = adapted.to(dtype)
        adapted(input_ids=ids, labels=ids).loss.backward()
        grads.append({name: parameter.grad.double() for name, parameter in trained(adapted).items()})
    single, double = grads
    for name in double:
        assert (single[name] - double[name]).norm() <= 1e-5 * double[name].norm() + 1e-9, name


def test_lora_says_no_where_a_role_is_missing(load: Load) -> None:
    _, profile = load("llama")
    refusal = lora.supports(profile, HERE, LoraConfig(target=("mixer",)))
    assert not refusal
    assert "mixer" in refusal.reason
    refusal = lora.supports(profile, HERE, LoraConfig(target=("attn", "experts")))
    assert refusal.reason == "llama has no modules of role experts (expert weights)"
    assert refusal.fix.startswith("take target from: attn.q, ")


def test_lora_says_no_to_a_tied_head(load: Load) -> None:
    _, untied = load("llama")
    assert lora.supports(untied, HERE, LoraConfig(target=("attn", "head")))
    _, tied = load("gemma2")
    assert tied.tied_embeddings
    refusal = lora.supports(tied, HERE, LoraConfig(target=("attn", "head")))
    assert not refusal
    assert "shares its matrix" in refusal.reason


def test_lora_refuses_targets_that_are_nothing(load: Load) -> None:
    with pytest.raises(ValueError, match="role"):
        LoraConfig(target=())
    _, profile = load("llama")
    refusal = lora.supports(profile, HERE, LoraConfig(target=("q_porj",)))
    assert not refusal
    assert refusal.fix == "did you mean `q_proj`?"
