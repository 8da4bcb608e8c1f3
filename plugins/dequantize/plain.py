"""A loaded checkpoint as plain weights: what transformers did not do while loading is done here, and it is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from luthier.core.contracts import NothingPatched
from luthier.core.dequantize import dequantize_model
from luthier.core.errors import ModelError
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from luthier.core.context import BuildContext


def make_plain(model: nn.Module, profile: ArchitectureProfile, context: BuildContext) -> None:
    """Every weight in the run's precision, trainable, with its plain shape.

    Raises NothingPatched where weights are still packed: an adapter would then train on something else than was planned;
    ModelError where they cannot be read back, or only into another model than this one.
    """
    assert profile.quantization is not None
    dtype = getattr(torch, context.precision.weights)
    if dequantize_model(model, dtype) is not model:
        raise ModelError(
            f"dequantize: transformers gave another {type(model).__name__} back for weights quantised by "
            f"{profile.quantization.method}, and the run holds the one with the packed weights",
            fix="take a checkpoint that is not quantised",
        )
    packed = [name for name, parameter in model.named_parameters() if parameter.dtype != dtype]
    numbers = sum(parameter.numel() for parameter in model.parameters())
    if packed or numbers != profile.parameters:
        what = f"{len(packed)} parameters are still packed, first {packed[0]}" if packed else f"{numbers:,} numbers came out"
        raise NothingPatched(f"dequantize: {what}; the model has {profile.parameters:,} parameters")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    context.notice(
        f"dequantize: {numbers:,} parameters in {context.precision.weights}, from a checkpoint quantised by "
        f"{profile.quantization.method}"
    )
