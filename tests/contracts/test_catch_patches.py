"""Model patches that break one promise each: the contract catches every one, and a sound one passes every check."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.contracts import MemoryTerms, ModelPatch, Undo
from luthier.core.testing import ModelPatchContract

Caught = Callable[..., None]
PROMISES = sorted(name for name in vars(ModelPatchContract) if name.startswith("test_"))


def norms(model: Any) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__ == "LlamaRMSNorm"]


def norm(module: Any, hidden: Tensor) -> Tensor:
    """As LlamaRMSNorm computes it."""
    wide = hidden.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    return module.weight * wide.to(hidden.dtype)


def replacing(forward: Callable[[Any, Tensor], Tensor], *, back: bool = True) -> Callable[..., Undo]:
    """An `apply` that puts `forward` on every norm."""

    def apply(model: Any, profile: Any, config: Any) -> Undo:
        replaced = norms(model)
        for module in replaced:
            module.forward = forward.__get__(module)

        def undo() -> None:
            for module in replaced if back else ():
                del module.forward

        return undo

    return apply


PATCH = ModelPatch(
    name="sound",
    summary="The norms in other words.",
    apply=replacing(norm),
    numerics="close",
    memory=lambda *_: MemoryTerms(activation_scale=0.9),
)


def patch_but(**changes: Any) -> ModelPatch[Any]:
    return dataclasses.replace(PATCH, **changes)


@pytest.mark.parametrize("name", PROMISES)
def test_a_sound_patch_passes(name: str, check: Caught) -> None:
    check(ModelPatchContract, name, PATCH)


def nothing(model: Any, profile: Any, config: Any) -> Undo:
    return lambda: None


def on_the_class(model: Any, profile: Any, config: Any) -> Undo:
    """Patches the class for good."""
    cls, own = type(norms(model)[0]), type(norms(model)[0]).forward
    on_the_class.restore = lambda: setattr(cls, "forward", own)  # type: ignore[attr-defined]
    cls.forward = lambda self, hidden: own(self, hidden)
    return lambda: None


def rescaled(model: Any, profile: Any, config: Any) -> Undo:
    """Takes a weight back by dividing again: not bit for bit."""
    weight = norms(model)[0].weight
    with torch.no_grad():
        weight.mul_(1.1)

    def undo() -> None:
        with torch.no_grad():
            weight.div_(1.1)

    return undo


def hooked(model: Any, profile: Any, config: Any) -> Undo:
    """Leaves its second hook behind."""
    first, _ = (norms(model)[0].register_forward_hook(lambda *_: None) for _ in range(2))
    return first.remove


def renamed(model: Any, profile: Any, config: Any) -> Undo:
    model.config.rms_norm_eps *= 2
    return lambda: None


APPLIED = itertools.count()


def once(model: Any, profile: Any, config: Any) -> Undo:
    """The second time its norms are twice as long."""
    factor = 1.0 + next(APPLIED) % 2
    return replacing(lambda self, hidden: factor * norm(self, hidden))(model, profile, config)


def detached(module: Any, hidden: Tensor) -> Tensor:
    return norm(module, hidden).detach()


def straight(module: Any, hidden: Tensor) -> Tensor:
    """The right output, and a gradient that takes the length for a constant."""
    scale = (norm(module, hidden) / hidden).detach()
    return hidden * scale + (norm(module, hidden) - hidden * scale).detach() + 0 * module.weight


def halting(module: Any, hidden: Tensor) -> Tensor:
    """Once it was evaluated, no gradient goes through it any more: what packed weights do."""
    module.evaluated = getattr(module, "evaluated", False) or not module.training
    return norm(module, hidden).detach() + 0 * hidden.sum() + 0 * module.weight if module.evaluated else norm(module, hidden)


BROKEN_PATCHES = [
    ("test_it_changes_something_and_takes_it_back", patch_but(apply=nothing), "it changed nothing and did not raise"),
    ("test_it_changes_something_and_takes_it_back", patch_but(apply=replacing(norm, back=False)), "first .*norm.*forward"),
    ("test_it_changes_something_and_takes_it_back", patch_but(apply=on_the_class), r"first .*LlamaRMSNorm\.forward"),
    ("test_it_changes_something_and_takes_it_back", patch_but(apply=rescaled), r"first .*weight \(values\)"),
    ("test_it_changes_something_and_takes_it_back", patch_but(apply=hooked), "first .*_forward_hooks"),
    ("test_it_changes_something_and_takes_it_back", patch_but(apply=renamed), "first the model's config"),
    ("test_it_can_be_applied_again", patch_but(apply=once), "applied a second time"),
    (
        "test_the_numbers_are_as_declared",
        patch_but(apply=replacing(lambda self, hidden: 1.01 * norm(self, hidden))),
        'numerics is "close", and the output',
    ),
    (
        "test_the_numbers_are_as_declared",
        patch_but(apply=replacing(lambda self, hidden: 1.0001 * norm(self, hidden)), numerics="exact"),
        'numerics is "exact", and the output',
    ),
    ("test_the_numbers_are_as_declared", patch_but(apply=replacing(straight)), "and the gradient is another"),
    (
        "test_the_numbers_are_as_declared",
        patch_but(apply=replacing(lambda self, hidden: norm(self, hidden) / 0), numerics="changes"),
        "gives no numbers",
    ),
    ("test_gradients_flow", patch_but(apply=replacing(detached)), "trained parameters get no gradient"),
    ("test_training_goes_on_after_an_evaluation", patch_but(apply=replacing(halting)), "after an evaluation the gradient"),
    (
        "test_the_memory_is_plausible",
        patch_but(memory=lambda *_: MemoryTerms(activation_scale=0.0)),
        "activation_scale is 0",
    ),
    (
        "test_the_memory_is_plausible",
        patch_but(memory=lambda *_: MemoryTerms(activation_scale=0.9, recomputed=10**9)),
        "activation_scale is 0.9, and with the 1000000000 numbers of recomputed",
    ),
    ("test_the_memory_is_plausible", patch_but(memory=lambda *_: MemoryTerms(recomputed=-1)), "recomputed is -1"),
    (
        "test_the_memory_is_plausible",
        patch_but(provides=frozenset({"weights.quantized"})),
        "weights are quantised, and memory.. gives no weight_bytes",
    ),
    (
        "test_the_memory_is_plausible",
        patch_but(provides=frozenset({"activations.recomputed"}), memory=lambda *_: MemoryTerms()),
        "activations are recomputed, and none are saved",
    ),
]


@pytest.mark.parametrize(
    ("name", "broken", "words"),
    BROKEN_PATCHES,
    ids=[f"{name[5:]}-{index}" for index, (name, *_) in enumerate(BROKEN_PATCHES)],
)
def test_a_broken_patch_is_caught(name: str, broken: ModelPatch[Any], words: str, caught: Caught) -> None:
    try:
        caught(ModelPatchContract, name, broken, words)
    finally:
        if broken.apply is on_the_class:
            on_the_class.restore()  # type: ignore[attr-defined]


def test_every_promise_has_a_patch_that_breaks_it() -> None:
    assert {name for name, *_ in BROKEN_PATCHES} == set(PROMISES)
