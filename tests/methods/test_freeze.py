"""`freeze`: exactly the named parts train, the plan counts them, and what lies below them keeps no activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.environment import Environment
from luthier.core.merging import merge_run
from luthier.plugins import freeze
from luthier.plugins.freeze import FreezeConfig
from luthier.registry.catalog import discover
from tests.methods.running import configuration, resumed_equals_straight, train, weights

Load = Callable[[str], tuple[Any, Any]]
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)

# What each set of options means, as a test of the parameter's name; layers of the tiny models are 0 and 1.
LAYER_1, LAYER_0 = ("layers.1.", ".h.1."), ("layers.0.", ".h.0.")
EMBEDDINGS = ("embed_tokens.", ".wte.")
CASES: dict[str, tuple[FreezeConfig, tuple[str, ...]]] = {
    "last": (FreezeConfig(layers=1), LAYER_1),
    "first": (FreezeConfig(layers=-1), LAYER_0),
    "all": (FreezeConfig(layers=2), (*LAYER_0, *LAYER_1)),
    "listed": (FreezeConfig(layers=(0,)), LAYER_0),
    "from the end": (FreezeConfig(layers=(-1,)), LAYER_1),
    "with the final norm": (FreezeConfig(layers=1, extra=("norm",)), (*LAYER_1, "model.norm.", ".ln_f.")),
    "with embeddings": (FreezeConfig(layers=1, embeddings=True), (*LAYER_1, *EMBEDDINGS)),
    "embeddings only": (FreezeConfig(layers=0, embeddings=True), EMBEDDINGS),
}


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("case", CASES)
def test_what_trains_is_what_was_named_and_is_counted(case: str, kind: str, load: Load) -> None:
    config, parts = CASES[case]
    model, profile = load(kind)
    assert freeze.supports(profile, HERE, config)
    expected = {name for name, _ in model.named_parameters() if any(part in name for part in parts)}
    freeze.attach(model, profile, config)
    assert trained(model) == expected
    terms = freeze.memory(profile, config)
    assert terms.trainable == count(model)
    assert terms.added == 0


@pytest.mark.parametrize(
    ("kind", "target", "parts"),
    [
        ("llama", ("attn",), ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("llama", ("mlp.down", "norm"), ("down_proj", "layernorm")),
        ("llama", ("q_proj",), ("q_proj",)),
        ("gpt2", ("attn.qkv",), ("attn.c_attn.",)),
        ("mixtral", ("experts",), ("experts.gate_up_proj", "experts.down_proj")),
        ("mixtral", ("mlp.router",), ("gate.weight",)),
    ],
)
def test_targets_within_the_layers(kind: str, target: tuple[str, ...], parts: tuple[str, ...], load: Load) -> None:
    model, profile = load(kind)
    config = FreezeConfig(layers=1, target=target)
    inside = [name for name, _ in model.named_parameters() if any(layer in name for layer in LAYER_1)]
    expected = {name for name in inside if any(part in name for part in parts)}
    assert freeze.supports(profile, HERE, config)
    freeze.attach(model, profile, config)
    assert trained(model) == expected
    assert freeze.memory(profile, config).trainable == count(model)


def test_tied_embeddings_train_once_and_the_plan_says_so(load: Load) -> None:
    model, profile = load("gemma2")
    assert profile.tied_embeddings
    config = FreezeConfig(layers=0, extra=("head",))
    support = freeze.supports(profile, HERE, config)
    assert support.kind == "experimental"
    assert "embeddings" in support.reason
    freeze.attach(model, profile, config)
    assert trained(model) == {"model.embed_tokens.weight"}
    both = FreezeConfig(layers=0, extra=("head",), embeddings=True)
    assert freeze.memory(profile, both).trainable == freeze.memory(profile, config).trainable == count(model)
    _, untied = load("llama")
    assert freeze.supports(untied, HERE, config).kind == "yes"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (FreezeConfig(layers=999), "layers"),
        (FreezeConfig(layers=-3), "layers"),
        (FreezeConfig(layers=(0, 7)), "7"),
        (FreezeConfig(layers=1, target=("mixer",)), "mixer"),
        (FreezeConfig(layers=1, target=("head",)), "inside the layers"),
        (FreezeConfig(layers=1, extra=("mlp",)), "outside the layers"),
    ],
)
def test_what_the_model_does_not_have_is_refused(config: FreezeConfig, words: str, load: Load) -> None:
    _, profile = load("llama")
    refusal = freeze.supports(profile, HERE, config)
    assert refusal.kind == "no"
    assert words in refusal.reason
    assert refusal.fix


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 0},
        {"layers": ()},
        {"layers": (1, 1)},
        {"target": ()},
        {"layers": 0, "target": ("attn",), "embeddings": True},
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"layers|target|nothing"):
        FreezeConfig(**options)


def kept_by_the_layers(model: Any, ids: torch.Tensor) -> int:
    """Bytes that autograd keeps of the decoder's output, each storage once, parameters not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=ids, use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (FreezeConfig(layers=2), 2 / 8),
        (FreezeConfig(layers=(2,)), 6 / 8),
        (FreezeConfig(layers=-1), 1.0),
        (FreezeConfig(layers=1, embeddings=True), 1.0),
        (FreezeConfig(layers=1, extra=("norm", "head")), 1 / 8),
    ],
)
def test_no_activations_below_the_first_trained_layer(
    config: FreezeConfig, part: float, tiny_folder: Callable[..., Path]
) -> None:
    """Autograd keeps no more than the forecast says; less where frozen projections above need not keep their inputs."""
    from transformers import AutoModelForCausalLM

    from luthier.registry.detect import detect

    folder = tiny_folder("llama", num_hidden_layers=8)
    profile = detect(folder)
    ids = torch.randint(0, 250, (1, 256), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(True)
    everything = kept_by_the_layers(model, ids)
    freeze.attach(model, profile, config)
    kept = kept_by_the_layers(model, ids) / everything
    assert freeze.memory(profile, config).activation_scale == pytest.approx(part)
    assert 0.65 * part < kept < part + 0.02


def test_a_run_resumes_bit_for_bit_and_leaves_a_plain_model(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    adapter = {"use": "freeze", "layers": 1, "extra": ["norm"]}
    config = configuration(folder, tmp_path, [], adapter=adapter, optimizer={"use": "adamw", "lr": 1e-3})
    assert resumed_equals_straight(config)
    before, after = weights(folder), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "layers.1." in name or name == "model.norm.weight"}


def test_mixed_precision_and_fused_experts_run(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    adapter = {"use": "freeze", "layers": 1, "target": ["experts", "norm"]}
    config = configuration(tiny_folder("mixtral"), tmp_path, [], adapter=adapter, precision="mixed")
    results, _ = train(config)
    assert results["trained_parameters"] == 128 * 2 * 64 * 8 + 128 * 64 * 8 + 2 * 64


def test_merging_changes_nothing(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    config = configuration(tiny_folder("qwen3"), tmp_path, [], adapter={"use": "freeze", "layers": 1})
    train(config)
    report = merge_run(tmp_path / "run", tmp_path / "merged", discover())
    assert report.difference == 0.0
