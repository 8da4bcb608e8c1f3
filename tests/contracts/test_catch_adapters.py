"""Adapters that break one promise each: the contract catches every one, and a sound one passes every check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from luthier.core.contracts import Adapter, Matrix, MemoryTerms, Support
from luthier.core.saving import ADAPTER_CONFIG
from luthier.core.testing import AdapterContract

Caught = Callable[..., None]
PROMISES = sorted(name for name in vars(AdapterContract) if name.startswith("test_"))
RANK = 4


def lora(model: Any, alpha: float = 8.0, **options: Any) -> Any:
    import peft

    given = {"r": RANK, "lora_alpha": alpha, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options
    return peft.get_peft_model(model, peft.LoraConfig(**given))


def memory(profile: Any, config: Any) -> MemoryTerms:
    q = RANK * (64 + 64)
    down = RANK * (128 + 64)
    return MemoryTerms(
        trainable=profile.layers * (q + down),
        added=profile.layers * (q + down),
        trainable_bytes=4,
        matrices=(
            Matrix(role="attn.q", shape=(RANK, 64), count=2),
            Matrix(role="attn.q", shape=(64, RANK), count=2),
            Matrix(role="mlp.down", shape=(RANK, 128), count=2),
            Matrix(role="mlp.down", shape=(64, RANK), count=2),
        ),
    )


SOUND = Adapter(
    name="sound",
    summary="A small LoRA.",
    provides=frozenset({"base.frozen", "adapter.mergeable", "adapter.detachable", "reference.by_disabling"}),
    attach=lambda model, profile, config: lora(model),
    merge=lambda model: model.merge_and_unload(),
    memory=memory,
)


def but(**changes: Any) -> Adapter[Any]:
    return dataclasses.replace(SOUND, **changes)


@pytest.mark.parametrize("name", PROMISES)
def test_a_sound_one_passes(name: str, check: Caught) -> None:
    check(AdapterContract, name, SOUND)


# ---- what is broken


def shifted(model: Any, profile: Any, config: Any) -> Any:
    """Its update does not begin at zero."""
    return lora(model, init_lora_weights=False)


def greedy(model: Any, profile: Any, config: Any) -> Any:
    """Trains a norm that it does not declare."""
    attached = lora(model)
    attached.get_submodule("base_model.model.model.norm").weight.requires_grad_(True)
    return attached


def lazy(model: Any, profile: Any, config: Any) -> Any:
    attached = lora(model)
    for parameter in attached.parameters():
        parameter.requires_grad_(False)
    return attached


def narrow(model: Any, profile: Any, config: Any) -> Any:
    return lora(model).to(next(model.parameters()).dtype)


class Twisted(torch.autograd.Function):
    """Passes its input on, and a gradient that is a tenth too long."""

    @staticmethod
    def forward(_: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 1.1 * gradient


def twisted(model: Any, profile: Any, config: Any) -> Any:
    attached = lora(model)
    attached.get_submodule("base_model.model.model.layers.1").register_forward_hook(
        lambda module, arguments, output: Twisted.apply(output)
    )
    return attached


def rounding(model: Any, profile: Any, config: Any) -> Any:
    """Rounds what it computes to bfloat16: right in the mean, too coarse for float32."""
    attached = lora(model)
    attached.get_submodule("base_model.model.model.layers.0").register_forward_hook(
        lambda module, arguments, output: output if output.dtype == torch.float64 else output.bfloat16().to(output.dtype)
    )
    return attached


def forgetful(model: Any, profile: Any, config: Any) -> Any:
    """One of its parameters is not part of the computation."""
    attached = lora(model)
    for module in attached.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] = 0.0
            break
    return attached


def leaking(model: Any, profile: Any, config: Any) -> Any:
    """Its forward writes into a weight of the base model."""
    attached = lora(model)
    norm = attached.get_submodule("base_model.model.model.norm")

    def write(module: nn.Module, arguments: Any) -> None:
        if module.training:
            with torch.no_grad():
                module.weight.mul_(0.99)

    norm.register_forward_pre_hook(write)
    return attached


def save_half(model: Any, folder: Any) -> None:
    """Leaves the last tensor out."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(str(folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[max(tensors)] = torch.zeros_like(tensors[max(tensors)])
    save_file(tensors, folder / "adapter_model.safetensors")


def save_strange(model: Any, folder: Any) -> None:
    """Says another scale than it was trained with."""
    import json

    model.save_pretrained(str(folder))
    path = folder / ADAPTER_CONFIG
    options = json.loads(path.read_text(encoding="utf-8")) | {"lora_alpha": 1.0}
    path.write_text(json.dumps(options), encoding="utf-8")


def load_frozen(model: Any, folder: Any, trainable: bool) -> Any:
    from luthier.core.saving import load_trained

    return load_trained(model, folder, SOUND, trainable=False)


def merge_off(model: Any) -> Any:
    merged = model.merge_and_unload()
    with torch.no_grad():
        merged.model.layers[0].self_attn.q_proj.weight.mul_(1.01)
    return merged


def pissa(model: Any, profile: Any, config: Any) -> Any:
    """Takes its start out of the base weights, so that they are others once it is off."""
    return lora(model, init_lora_weights="pissa")


def impure(model: Any, profile: Any, config: Any) -> Any:
    """Every other pass through the first layer is off: what is computed again is not what was computed."""
    attached = lora(model)
    calls = iter(range(10**9))

    def drift(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + 0.1 * (next(calls) % 2))

    attached.get_submodule("base_model.model.model.layers.0.mlp.down_proj").register_forward_hook(drift)
    return attached


def overflowing(model: Any, profile: Any, config: Any) -> Any:
    """Computes in float16, where a thousand squared is infinite."""
    attached = lora(model)
    attached.get_submodule("base_model.model.model.norm").register_forward_hook(
        lambda module, arguments, output: (
            output if output.dtype != torch.bfloat16 else ((output.half() * 1e3) ** 2).to(output.dtype)
        )
    )
    return attached


BROKEN = [
    ("test_the_output_at_attach", but(attach=shifted), "attaching moves the output"),
    ("test_exactly_the_declared_parameters_train", but(attach=greedy), r"parameters train, memory\(\) declares"),
    ("test_exactly_the_declared_parameters_train", but(attach=lazy), "no parameter trains"),
    (
        "test_exactly_the_declared_parameters_train",
        but(attach=greedy, memory=lambda *_: MemoryTerms(trainable=2560 + 64, added=2560)),
        "base.frozen is declared, and model.norm.weight of the base model trains",
    ),
    (
        "test_exactly_the_declared_parameters_train",
        but(memory=lambda *_: MemoryTerms(trainable=2560, matrices=(Matrix(role="attn.q", shape=(4, 64), count=10),))),
        "memory.. declares matrices that do not train",
    ),
    (
        "test_exactly_the_declared_parameters_train",
        but(memory=lambda *_: MemoryTerms(trainable=2560, matrices=(Matrix(role="attn.q", shape=(4, 64)),))),
        "the matrices of memory.. add up to 256",
    ),
    (
        "test_a_copy_stands_beside_it",
        but(attach=greedy, provides=SOUND.provides | {"adapter.copies"}),
        "adapter.copies is declared, and the copy's output is",
    ),
    ("test_the_memory_is_as_declared", but(attach=narrow), "takes 5120 bytes beside bfloat16 weights"),
    (
        "test_the_memory_is_as_declared",
        but(memory=lambda *_: MemoryTerms(trainable=2560, added=0, trainable_bytes=4)),
        "2560 parameters were added, memory.. declares 0",
    ),
    ("test_gradients_are_right", but(attach=twisted), "the gradient is not that of the loss"),
    ("test_gradients_are_right", but(attach=rounding), "in float32 the gradient is not that in float64"),
    ("test_a_step_changes_only_what_trains", but(attach=forgetful), "does not depend on 2 tensors that train"),
    ("test_a_step_changes_only_what_trains", but(attach=leaking), "1 tensors that do not train, first .*norm.weight"),
    ("test_saved_and_loaded_is_the_same", but(save=save_half), "saved and loaded, the output differs"),
    ("test_saved_and_loaded_is_the_same", but(load=load_frozen), "after loading, other parameters train"),
    ("test_other_libraries_load_it", but(save=save_strange), "without Luthier, the output of what was saved differs"),
    ("test_merged_is_unmerged", but(merge=None), "there is no `merge`"),
    ("test_merged_is_unmerged", but(merge=merge_off), "merging moves the output"),
    ("test_merged_is_unmerged", but(merge=lambda model: model.base_model.model), "modules were not folded in"),
    ("test_switched_off_is_the_base", but(attach=pissa), "declared, and switched off the output is"),
    ("test_switched_off_is_the_base", but(provides=frozenset({"base.frozen"})), "it is the base again: declare"),
    ("test_checkpointing", but(attach=impure), "with checkpointing the gradient is another"),
    ("test_bfloat16", but(attach=overflowing), "the loss is"),
    ("test_it_answers", but(supports=lambda *_: Support.no("")), "but not why"),
    ("test_it_answers", but(supports=lambda *_: 1 / 0), "this is a defect"),
    ("test_it_says_yes_to_something", but(supports=lambda *_: Support.no("I never do")), "I never do"),
]


@pytest.mark.parametrize(
    ("name", "broken", "words"),
    BROKEN,
    ids=[f"{name.removeprefix('test_')}-{index}" for index, (name, *_) in enumerate(BROKEN)],
)
def test_a_broken_one_is_caught(name: str, broken: Adapter[Any], words: str, caught: Caught) -> None:
    caught(AdapterContract, name, broken, words)


def test_every_promise_has_an_adapter_that_breaks_it() -> None:
    assert {name for name, *_ in BROKEN} >= set(PROMISES)


def test_disabling_is_asked_of_what_cannot_be_disabled(caught: Caught) -> None:
    def whole(model: Any, profile: Any, config: Any) -> Any:
        return model

    claims = but(attach=whole, memory=lambda profile, _: MemoryTerms(trainable=profile.parameters))
    caught(AdapterContract, "test_switched_off_is_the_base", claims, "has no `disable_adapter`")
