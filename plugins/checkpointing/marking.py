"""transformers' checkpointing, switched on layer by layer.

A `GradientCheckpointingLayer` recomputes itself when it trains and its `gradient_checkpointing` is true, through the
function it finds in `_gradient_checkpointing_func`. Setting these two on a layer is all there is to it; the model-wide
`activation_checkpointing_enable` would also make the embeddings' output require a gradient, which the non-reentrant kind
does not need, and would not take that back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from luthier.core.contracts import NothingPatched, Undo
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from luthier.plugins.checkpointing import CheckpointingConfig

FLAG, FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"
ABSENT = object()


def mark_layers(model: nn.Module, profile: ArchitectureProfile, config: CheckpointingConfig) -> tuple[Undo, int, int]:
    """Mark the chosen decoder layers of `model`, wrapped by an adapter or not: (undo, layers marked, layers there are).

    Raises NothingPatched when the decoder is not where its profile says, or a chosen layer has no such switch.
    """
    layers = decoder_layers(model, profile)
    chosen = [layers[index] for index in config.chosen(len(layers))]
    without = [layer for layer in chosen if not hasattr(layer, FLAG)]
    marked: Sequence[nn.Module] = chosen
    if without and len(chosen) == len(layers):
        # Models that bring their own code may keep the switch on the decoder, for all of its layers at once.
        marked = [module for module in model.modules() if hasattr(module, FLAG)]
    elif without:
        raise NothingPatched(
            f"checkpointing: {len(without)} of the chosen layers of {profile.architecture}, a {type(without[0]).__name__}, "
            "have no switch of their own; take all layers, without `every` and `layers`"
        )
    if not marked:
        raise NothingPatched(f"checkpointing: no layer of {profile.architecture} took it")
    function = partial(offloaded if config.offload else checkpoint, use_reentrant=False)
    before = [(module, vars(module).get(FLAG, ABSENT), vars(module).get(FUNCTION, ABSENT)) for module in marked]
    for module in marked:
        setattr(module, FLAG, True)
        setattr(module, FUNCTION, function)

    def undo() -> None:
        for module, flag, own in before:
            restore(module, FLAG, flag)
            restore(module, FUNCTION, own)

    return undo, len(chosen), len(layers)


def decoder_layers(model: nn.Module, profile: ArchitectureProfile) -> list[nn.Module]:
    """The decoder's layers in order, as the model has them now: an adapter may have put more between them."""
    find: Any = getattr(model, "get_base_model", None)
    base: nn.Module = find() if find is not None else model
    try:
        return list(base.get_submodule(profile.decoder).children())
    except AttributeError as error:
        raise NothingPatched(
            f"checkpointing: the loaded model lacks the decoder layers that its profile names: {profile.decoder}"
        ) from error


def restore(module: nn.Module, name: str, value: object) -> None:
    """The attribute as it was on the module itself: with this value, or only on its class."""
    if value is ABSENT:
        delattr(module, name)
    else:
        setattr(module, name, value)


def offloaded(function: Callable[..., Any], *inputs: Any, use_reentrant: bool) -> Any:
    """Checkpoint `function`, its `inputs` copied to the host's memory until the backward pass fetches them back.

    The copies to pinned memory run on the compute stream (torch's `save_on_cpu`), so that a step takes longer. Raises
    NothingPatched where no input is a tensor: what a layer is called with by keyword is part of `function`, and stays.
    """
    if not any(isinstance(value, torch.Tensor) for value in inputs):
        raise NothingPatched(
            "checkpointing: offload copies the positional inputs of a decoder layer, and this model calls its layers with "
            "keywords alone, so that nothing would move to the host",
            fix="leave out offload",
        )
    # The hooks of `checkpoint` lie inside these, and catch all that the layer itself would save: only its inputs get here.
    with save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(function, *inputs, use_reentrant=use_reentrant)
