"""What LoRA saves is a plain LoRA of the original model: plain PEFT gives the same logits; merging and resuming do too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

CASES: dict[str, dict[str, Any]] = {
    "plain": {"rank": 4, "dropout": 0.1},
    "rslora": {"rank": 4, "alpha": 6.0, "rslora": True},
    "patterns": {"rank": 4, "rank_pattern": {"attn": 2}, "alpha_pattern": {"mlp": 3.0}, "target": ("attn", "mlp")},
    "layers": {"rank": 4, "target": ("attn",), "layers": (-1,)},
    "pissa": {"rank": 4, "alpha": 6.0, "init": "pissa"},
    "pissa-rslora": {"rank": 4, "alpha": 6.0, "rslora": True, "init": "pissa"},
    "pissa-patterns": {"rank": 4, "rank_pattern": {"attn.o": 6}, "alpha_pattern": {"attn": 5.0}, "init": "pissa"},
    "olora": {"rank": 4, "init": "olora"},
    "corda": {"rank": 4, "init": "corda", "init_batches": 2},
    "corda-kpm": {"rank": 4, "init": "corda", "init_batches": 2, "corda_method": "kpm"},
    "eva": {"rank": 4, "init": "eva", "init_batches": 2},
    "gaussian": {"rank": 4, "init": "gaussian"},
    "embeddings": {"rank": 4, "modules_to_save": ("embed",)},
    "head": {"rank": 4, "modules_to_save": ("head",)},
    "norms": {"rank": 4, "modules_to_save": ("norm",)},
    "tokens": {"rank": 4, "trainable_tokens": (3, 7, "<|user|>")},
    "pissa-tokens": {"rank": 4, "init": "pissa", "trainable_tokens": (3, 7)},
    "pissa-embeddings": {"rank": 4, "init": "pissa", "modules_to_save": ("embed", "head")},
    "dora": {"rank": 4},
    "dora-rslora-embeddings": {"rank": 4, "alpha": 6.0, "rslora": True, "modules_to_save": ("embed",)},
}
BIAS = ({"bias": "all"}, {"bias": "lora_only"}, {"bias": "all", "init": "pissa"})
EXPERTS = ({"target": ("experts",)}, {"target": ("attn", "experts"), "rank_pattern": {"experts": 2}, "init": "gaussian"})


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 3e-5 * other.abs().max())


def round_trip(kit: Any, kind: str, name: str, options: dict[str, Any], folder: Path) -> None:
    """Train, then: plain PEFT on the original base, a fresh attachment that is filled, and folding, all give the same."""
    base = kit.base_logits(kind)
    model, _, _ = kit.attach(kind, name, **options)
    kit.train(model)
    trained = kit.logits(model)
    assert (trained - base).abs().max() > 1e-2 * base.abs().max()
    kit.save(model, folder, name)
    assert {path.name for path in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    assert close(kit.logits(kit.plain_peft(kind, folder)), trained)
    again, _, _ = kit.attach(kind, name, **options)
    again = kit.reload(again, folder, name)
    assert close(kit.logits(again), trained)
    assert set(kit.trained(again)) == set(kit.trained(model))
    for key, parameter in kit.trained(again).items():
        assert torch.equal(parameter, kit.trained(model)[key]), key
    unattached = kit.reload(kit.load(kind)[0], folder, name)
    assert close(kit.logits(unattached), trained)
    for one in (model, unattached):
        merged = kit.adapter(name).merge(one)
        assert not [module for module in merged.modules() if type(module).__module__.startswith("peft.")]
        assert close(kit.logits(merged), trained)


ON_EVERY_KIND = ("plain", "pissa", "embeddings", "tokens", "dora")
ELSEWHERE = {"gpt2": ("patterns", "olora", "corda", "head"), "gemma2": ("pissa-embeddings", "pissa-tokens")}
ROUNDS = [
    (kind, case)
    for kind in ("llama", "qwen3", "gpt2", "phi3", "gemma2", "mixtral")
    for case in CASES
    if kind == "llama" or case in ON_EVERY_KIND or case in ELSEWHERE.get(kind, ())
]


@pytest.mark.parametrize(("kind", "case"), ROUNDS)
def test_round_trip(kind: str, kit: Any, case: str, tmp_path: Path) -> None:
    round_trip(kit, kind, "dora" if case.startswith("dora") else "lora", CASES[case], tmp_path / "saved")


@pytest.mark.parametrize("options", BIAS, ids=str)
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_round_trip_of_biases(kit: Any, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    if name == "dora" and "init" in options:
        options = {"bias": "all", "init": "gaussian"}
    round_trip(kit, "gpt2", name, {"rank": 4, **options}, tmp_path / "saved")


@pytest.mark.parametrize("options", EXPERTS, ids=str)
def test_round_trip_of_experts(kit: Any, options: dict[str, Any], tmp_path: Path) -> None:
    round_trip(kit, "mixtral", "lora", {"rank": 4, **options}, tmp_path / "saved")


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
@pytest.mark.parametrize("case", ["embeddings", "head", "tokens"])
def test_tied_stays_tied(kind: str, kit: Any, case: str, tmp_path: Path) -> None:
    """One matrix trains for both, after loading too, and the merged model has one."""
    model, _, _ = kit.attach(kind, **CASES[case])
    folder = kit.save(kit.train(model), tmp_path / "saved")
    unattached = kit.reload(kit.load(kind)[0], folder)
    for one in (model, unattached):
        merged = kit.adapter("lora").merge(one)
        assert merged.get_input_embeddings().weight.data_ptr() == merged.get_output_embeddings().weight.data_ptr()
        assert merged.config.tie_word_embeddings


def test_a_start_that_came_out_differently_is_corrected(kit: Any, tmp_path: Path) -> None:
    """Another machine's singular vectors have other signs; what was trained is still what is loaded."""
    model, _, _ = kit.attach("llama", rank=4, init="pissa")
    kit.train(model)
    folder = kit.save(model, tmp_path / "saved")
    other, _, _ = kit.attach("llama", rank=4, init="olora")
    assert close(kit.logits(kit.reload(other, folder)), kit.logits(model))
    # And saved again, it is still an update of the original model.
    again = kit.save(other, tmp_path / "again")
    assert close(kit.logits(kit.plain_peft("llama", again)), kit.logits(model))


def test_the_file_is_a_plain_lora_of_twice_the_rank(kit: Any, tmp_path: Path) -> None:
    model, _, _ = kit.attach("llama", rank=4, alpha=6, init="pissa", rank_pattern={"mlp.down": 2})
    folder = kit.save(kit.train(model), tmp_path / "saved")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 12, True)
    assert config["rank_pattern"] == {"down_proj": 4}
    shapes = {
        name.rpartition("layers.0.")[2]: tuple(t.shape)
        for name, t in load_file(folder / "adapter_model.safetensors").items()
    }
    assert shapes["self_attn.q_proj.lora_A.weight"] == (8, 64)
    assert shapes["mlp.down_proj.lora_B.weight"] == (64, 4)


def test_a_file_of_other_options_is_refused(kit: Any, tmp_path: Path) -> None:
    from luthier.core.errors import ModelError

    model, _, _ = kit.attach("llama", rank=4, init="pissa")
    folder = kit.save(model, tmp_path / "saved")
    other, _, _ = kit.attach("llama", rank=6, init="pissa")
    with pytest.raises(ModelError, match="12 rows are needed"):
        kit.reload(other, folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "down_proj" in name))
    save_file(tensors, path)
    with pytest.raises(ModelError, match="1 weights are missing"):
        kit.reload(model, folder)
