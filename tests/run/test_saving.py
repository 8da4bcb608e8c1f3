"""What is saved loads again in the library it is meant for, and what is damaged or foreign is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from luthier.core.contracts import Adapter
from luthier.core.errors import ModelError
from luthier.core.saving import load_trained, save_trained

PLAIN = Adapter(name="plain", summary="", attach=lambda model, profile, config: model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 19).view(2, 8)).logits


def shake(model: Any) -> Any:
    """Other values in everything that trains."""
    torch.manual_seed(99)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_whole_model_is_read_by_transformers_and_by_us(llama: Any, tmp_path: Path) -> None:
    model = shake(llama())
    save_trained(model, tmp_path, PLAIN)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(loaded), logits(model))
    other = llama(5)
    assert load_trained(other, tmp_path, PLAIN, trainable=True) is other
    assert torch.equal(logits(other), logits(model))
    assert all(parameter.requires_grad for parameter in other.parameters())
    assert json.loads((tmp_path / "config.json").read_text()).get("use_cache", True) is True


def test_an_adapter_is_read_by_peft_and_by_us(llama: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    model = shake(llama(lora=0.0))
    save_trained(model, tmp_path, PLAIN)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))
    inplace = llama(lora=0.0)
    assert load_trained(inplace, tmp_path, PLAIN, trainable=True) is inplace
    assert torch.equal(logits(inplace), logits(model))
    assert {n for n, p in inplace.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    attached = load_trained(llama(), tmp_path, PLAIN, trainable=False)
    assert torch.equal(logits(attached), logits(model))
    assert not any(parameter.requires_grad for parameter in attached.parameters())


def test_an_adapter_on_the_embeddings_takes_them_along(tmp_path: Path, llama: Any) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = shake(get_peft_model(llama(), LoraConfig(r=2, target_modules=["embed_tokens", "v_proj"])))
    save_trained(model, tmp_path, PLAIN)
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))
    again = get_peft_model(llama(), LoraConfig(r=2, target_modules=["embed_tokens", "v_proj"]))
    load_trained(again, tmp_path, PLAIN, trainable=True)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 64}),
        ("gemma2", {"head_dim": 8}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
    ids=["tied-conv1d", "tied-softcap", "fused-experts"],
)
def test_architectures_with_their_own_ways_of_storing(model_type: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    """Tied matrices are stored once; fused experts are stored one by one and fused again."""
    usual = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = AutoConfig.for_model(model_type, **(sizes if model_type == "gpt2" else usual | sizes))
    torch.manual_seed(0)
    model = shake(AutoModelForCausalLM.from_config(config))
    save_trained(model, tmp_path, PLAIN)
    other = AutoModelForCausalLM.from_config(config)
    load_trained(other, tmp_path, PLAIN, trainable=True)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_shards(llama: Any, tmp_path: Path) -> None:
    model = shake(llama())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    other = llama(5)
    load_trained(other, tmp_path, PLAIN, trainable=True)
    assert torch.equal(logits(other), logits(model))
    next(iter(sorted(tmp_path.glob("model-*.safetensors")))).unlink()
    with pytest.raises(ModelError, match=r"model-00001-of-.*cannot be read"):
        load_trained(other, tmp_path, PLAIN, trainable=True)


@pytest.mark.parametrize(("options", "name"), [({}, "model.safetensors"), ({"lora": 0.0}, "adapter_model.safetensors")])
def test_damaged_and_foreign_weights_are_named(llama: Any, tmp_path: Path, options: Any, name: str) -> None:
    save_trained(llama(**options), tmp_path, PLAIN)
    path = tmp_path / name
    weights, whole = {k: v.clone() for k, v in load_file(path).items()}, path.read_bytes()
    first = sorted(weights)[0]
    cases = {
        "cannot be read": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "cannot be read: Error while des": lambda: path.write_bytes(b"not a model"),
        "1 weights are missing": lambda: save_file({k: v for k, v in weights.items() if k != first}, path),
        "(?i)size mismatch": lambda: save_file(weights | {first: torch.zeros(3, 3)}, path),
    }
    for message, damage in cases.items():
        damage()
        with pytest.raises(ModelError, match=message) as caught:
            load_trained(llama(**options), tmp_path, PLAIN, trainable=True)
        assert name in caught.value.where
    path.unlink()
    with pytest.raises(ModelError, match=name):
        load_trained(llama(**options), tmp_path, PLAIN, trainable=True)


def test_an_adapter_of_other_modules_is_refused(llama: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    save_trained(get_peft_model(llama(), LoraConfig(r=4, target_modules=["v_proj"])), tmp_path, PLAIN)
    with pytest.raises(ModelError, match=r"missing .* and .* are of another model"):
        load_trained(llama(lora=0.0), tmp_path, PLAIN, trainable=True)


def test_an_adapter_may_bring_its_own(llama: Any, tmp_path: Path) -> None:
    def save(model: Any, folder: Path) -> None:
        save_file({"norm": model.model.norm.weight.detach()}, folder / "norm.safetensors")

    def load(model: Any, folder: Path, trainable: bool) -> Any:
        model.model.norm.weight.data.copy_(load_file(folder / "norm.safetensors")["norm"])
        return model.requires_grad_(trainable)

    own = Adapter(name="own", summary="", attach=PLAIN.attach, save=save, load=load)
    model = shake(llama())
    save_trained(model, tmp_path, own)
    assert [path.name for path in tmp_path.iterdir()] == ["norm.safetensors"]
    other = load_trained(llama(), tmp_path, own, trainable=False)
    assert torch.equal(other.model.norm.weight, model.model.norm.weight)
    assert not other.model.norm.weight.requires_grad


def test_a_bare_module_needs_an_adapter_that_saves(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Linear is neither"):
        save_trained(torch.nn.Linear(2, 2), tmp_path, PLAIN)
    with pytest.raises(ModelError, match="no such folder"):
        load_trained(torch.nn.Linear(2, 2), tmp_path / "none", PLAIN, trainable=True)
