"""`checkpointing`: the same numbers; exactly the chosen layers; as many kept activations as the formula says."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.context import BuildContext
from luthier.core.contracts import NothingPatched
from luthier.core.environment import Environment
from luthier.core.memory import forecast, layer_elements_per_token
from luthier.core.plan import Precision
from luthier.plugins import checkpointing
from luthier.plugins.checkpointing import CheckpointingConfig
from luthier.plugins.checkpointing.marking import FLAG, FUNCTION, offloaded

from .running import configuration, resumed_equals_straight, train

Load = Callable[[str], tuple[Any, Any]]
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)
ALL = CheckpointingConfig()


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    torch.manual_seed(0)  # the same dropout each time
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return found | {"loss": loss.detach()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def marked(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if getattr(module, FLAG, False)]


@pytest.mark.parametrize("config", [ALL, CheckpointingConfig(every=2), CheckpointingConfig(layers=(-1,))])
def test_gradients_are_the_same_bits(config: CheckpointingConfig, kind: str, load: Load, ids: torch.Tensor) -> None:
    model, profile = load(kind)
    before = switches(model)
    plain = gradients(model, ids)
    undo = checkpointing.apply(model, profile, config)
    assert len(marked(model)) == len(config.chosen(2))
    assert equal(gradients(model, ids), plain)
    undo()
    assert not marked(model)
    assert switches(model) == before


def switches(model: Any) -> list[tuple[str, str]]:
    """Where transformers' two attributes stand on a module itself, and what they hold."""
    names = (FLAG, FUNCTION)
    return [(path, str(vars(part)[name])) for path, part in model.named_modules() for name in names if name in vars(part)]


def test_dropout_is_drawn_again_as_it_was(load: Load, ids: torch.Tensor) -> None:
    """gpt2 has dropout in every layer; without the saved generator state the gradients would be of another model."""
    model, profile = load("gpt2")
    plain = gradients(model, ids)
    torch.manual_seed(1)
    model.train()
    other = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert not torch.equal(other, plain["loss"])
    checkpointing.apply(model, profile, ALL)
    assert equal(gradients(model, ids), plain)


def test_with_an_adapter_on_a_frozen_base(kind: str, load: Load, ids: torch.Tensor) -> None:
    """No input of the first layer needs a gradient there: the reentrant kind would give none at all."""
    from luthier.plugins import lora

    model, profile = load(kind)
    adapted = lora.attach(model, profile, lora.LoraConfig(rank=2, dropout=0.2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain = gradients(adapted, ids)
    assert len(plain) > 1
    undo = checkpointing.apply(adapted, profile, ALL)
    assert len(marked(adapted)) == 2
    assert equal(gradients(adapted, ids), plain)
    undo()
    assert not marked(adapted)


def test_the_chosen_layers_and_no_others(tiny_folder: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    from luthier.registry.detect import detect

    folder = tiny_folder("llama", num_hidden_layers=5)
    profile = detect(folder)
    cases = {
        CheckpointingConfig(): [0, 1, 2, 3, 4],
        CheckpointingConfig(every=2): [0, 2, 4],
        CheckpointingConfig(every=9): [0],
        CheckpointingConfig(layers=(0, 1, -1, 4)): [0, 1, 4],
    }
    for config, expected in cases.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        said: list[str] = []
        context = BuildContext(
            precision=Precision(name="fp32", weights="float32", compute="float32", why=""), notice=said.append
        )
        checkpointing.apply(model, profile, config, context)
        assert marked(model) == [f"model.layers.{layer}" for layer in expected]
        assert f"{len(expected)} of 5 decoder layers" in said[0]


def kept_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes that the forward pass of the decoder keeps for the backward pass, parameters not counted."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    # What no gradient needs goes again with the layer, as the inputs of frozen ones do: what the graph still holds counts.
    held: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor)
        if tensor.data_ptr() not in own:
            held.add(kept)
        return kept

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        end = model.model(input_ids=ids, use_cache=False).last_hidden_state.sum()
    gc.collect()
    assert end.requires_grad
    storages = [kept.tensor.untyped_storage() for kept in held]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Kept:
    """A tensor that autograd keeps; that it does is seen by this object being there."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@pytest.fixture
def deep(tiny_folder: Callable[..., Path]) -> tuple[Any, Any]:
    """Eight layers, and their profile."""
    from transformers import AutoModelForCausalLM

    from luthier.registry.detect import detect

    folder = tiny_folder("llama", num_hidden_layers=8)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), detect(folder)


def test_a_layer_keeps_its_input_and_nothing_else(deep: tuple[Any, Any]) -> None:
    """Each layer more that recomputes saves the same; with all of them, inputs are left, and what the final norm keeps."""
    model, profile = deep
    ids = torch.randint(0, 250, (1, 256), generator=torch.Generator().manual_seed(0))
    one_input = 256 * 64 * 4
    kept = [kept_bytes(model, ids)]
    for count in range(1, 9):
        undo = checkpointing.apply(model, profile, CheckpointingConfig(layers=tuple(range(count))))
        kept.append(kept_bytes(model, ids))
        undo()
    saved = [before - after for before, after in pairwise(kept)]
    assert min(saved) > 10 * one_input
    # The last one to go takes the tables of sines and cosines with it, which all layers share.
    assert max(saved) - min(saved) <= one_input
    assert 8 * one_input <= kept[8] <= 11 * one_input


@pytest.mark.parametrize("config", [ALL, CheckpointingConfig(every=2), CheckpointingConfig(layers=(0, 1, 2))])
def test_the_prediction_is_what_is_kept(config: CheckpointingConfig, deep: tuple[Any, Any]) -> None:
    model, profile = deep
    ids = torch.randint(0, 250, (1, 256), generator=torch.Generator().manual_seed(0))
    plain = kept_bytes(model, ids)
    checkpointing.apply(model, profile, config)
    measured = kept_bytes(model, ids) / plain
    assert checkpointing.memory(profile, config).activation_scale == pytest.approx(measured, abs=0.06)


def test_below_frozen_layers_the_recomputed_one_is_there_in_full(deep: tuple[Any, Any]) -> None:
    """Two of eight layers train: their inputs are kept, none below, and K of the one that is computed again beside them."""
    from luthier.plugins import freeze

    model, profile = deep
    config = freeze.FreezeConfig(layers=(-2, -1))
    ids = torch.randint(0, 250, (1, 256), generator=torch.Generator().manual_seed(0))
    freeze.attach(model, profile, config)
    checkpointing.apply(model, profile, ALL)
    one_input = 256 * 64 * 4
    assert 2 * one_input <= kept_bytes(model, ids) <= 5 * one_input
    shares = [freeze.memory(profile, config), checkpointing.memory(profile, ALL)]
    precision = Precision(name="fp32", weights="float32", compute="float32", why="")
    predicted = forecast(profile, shares, precision, batch_tokens=256).activations
    logits = 256 * profile.vocab_size * 16
    # 8 H + 2 (heads + kv) x head_dim + 5 I numbers a token.
    (group,) = profile.attention
    layer = 8 * 64 + 2 * (group.heads + group.kv_heads) * group.head_dim + 5 * profile.intermediate_size
    assert predicted - logits == 256 * 4 * (2 * 64 + layer)


def test_the_highest_moment_of_the_backward_pass(deep: tuple[Any, Any]) -> None:
    """The formula against the sum written out for every layer: what those before it keep, and its own K."""
    _, profile = deep
    whole, given = layer_elements_per_token(profile), profile.hidden_size
    for config in (
        ALL,
        CheckpointingConfig(every=3),
        CheckpointingConfig(layers=(2, 6)),
        CheckpointingConfig(layers=(-1, 0)),
    ):
        chosen = config.chosen(8)
        keeps = [given if layer in chosen else whole for layer in range(8)]
        moments = [sum(keeps)] + [sum(keeps[: layer + 1]) + whole for layer in chosen]
        expected = max(moments) / (8 * whole)
        # A layer that is not the last one comes when K of a later one is freed already: less than an input is left over.
        terms = checkpointing.memory(profile, config)
        found = terms.activation_scale + terms.recomputed / (8 * whole)
        assert found == pytest.approx(expected, abs=given / (8 * whole))


def test_offload_copies_the_input_and_gives_the_same_gradients(load: Load, ids: torch.Tensor) -> None:
    """The mechanism itself, on the CPU: `supports` refuses it there, because nothing would be gained."""
    config = CheckpointingConfig(offload=True)
    model, profile = load("llama")
    refusal = checkpointing.supports(profile, HERE, config)
    assert refusal.kind == "missing"
    assert "cuda" in refusal.reason
    plain = gradients(model, ids)
    checkpointing.apply(model, profile, config)
    assert equal(gradients(model, ids), plain)
    less = checkpointing.memory(profile, ALL).activation_scale - checkpointing.memory(profile, config).activation_scale
    assert less == pytest.approx(profile.hidden_size / layer_elements_per_token(profile))


def test_offload_takes_inputs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer with much inside, one tensor is copied: its input."""
    copied: list[torch.Size] = []
    original = torch.Tensor.copy_

    def copy_(self: torch.Tensor, source: torch.Tensor, *args: Any) -> torch.Tensor:
        copied.append(source.shape)
        return original(self, source, *args)

    layer = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8), torch.nn.GELU())
    entered = torch.randn(3, 8, requires_grad=True)
    layer(entered).sum().backward()
    assert entered.grad is not None
    expected, entered.grad = entered.grad.clone(), None
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    offloaded(layer, entered, use_reentrant=False).sum().backward()
    monkeypatch.undo()
    assert torch.equal(entered.grad, expected)
    assert all(shape == entered.shape for shape in copied if len(shape) > 1)


def test_offload_of_nothing_stops_the_run() -> None:
    """transformers' layer puts keywords into the function it checkpoints: if the input is one of them, no copy is made."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Layer(GradientCheckpointingLayer):
        def forward(self, hidden_states: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return (hidden_states * scale).sin()

    layer = Layer().train()
    setattr(layer, FLAG, True)
    setattr(layer, FUNCTION, partial(offloaded, use_reentrant=False))
    entered = torch.randn(3, 8, requires_grad=True)
    layer(entered, scale=2.0).sum().backward()
    with pytest.raises(NothingPatched, match=r"keywords alone.*\n  fix: leave out offload"):
        layer(hidden_states=entered)


def test_it_says_no(load: Load) -> None:
    _, profile = load("llama")
    assert "no layers 2" in checkpointing.supports(profile, HERE, CheckpointingConfig(layers=(2,))).reason
    assert "saves nothing" in checkpointing.supports(profile, HERE, CheckpointingConfig(layers=(-1,))).reason
    assert checkpointing.supports(profile, HERE, CheckpointingConfig(layers=(0,)))
    with pytest.raises(ValueError, match="either"):
        CheckpointingConfig(layers=(0,), every=2)
    with pytest.raises(ValueError, match="no layer"):
        CheckpointingConfig(layers=())


def test_a_model_without_switches_stops_the_run(load: Load) -> None:
    _, profile = load("llama")
    bare = torch.nn.Module()
    bare.model = torch.nn.Module()
    bare.model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    with pytest.raises(NothingPatched, match="no layer"):
        checkpointing.apply(bare, profile, ALL)
    with pytest.raises(NothingPatched, match="switch"):
        checkpointing.apply(bare, profile, CheckpointingConfig(every=2))
    with pytest.raises(NothingPatched, match="lacks"):
        checkpointing.apply(torch.nn.Linear(2, 2), profile, ALL)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mixtral"])
def test_a_run_with_it_is_the_run_without_it(model_type: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    from .conftest import SMALL

    folder = tiny_folder(model_type, **SMALL.get(model_type, {}))
    losses = []
    for name, patches in (("plain", []), ("recomputed", [{"use": "checkpointing", "every": 2}])):
        config = configuration(folder, tmp_path, patches, output=str(tmp_path / name))
        results, said = train(config)
        losses.append(results["train_loss"])
        assert any("1 of 2 decoder layers" in text for text in said) == bool(patches)
    assert losses[0] == losses[1]


def test_it_resumes_to_the_same_bits(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    adapter = {"use": "lora", "rank": 4, "dropout": 0.1}
    assert resumed_equals_straight(configuration(tiny_folder("llama"), tmp_path, ["checkpointing"], adapter=adapter))
