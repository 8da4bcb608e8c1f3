"""`full`: every parameter of the model trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from luthier.core.contracts import Adapter, MemoryTerms
from luthier.core.hookspecs import hookimpl
from luthier.core.options import NoOptions
from luthier.core.profile import ArchitectureProfile
from luthier.core.targets import every_matrix

if TYPE_CHECKING:
    from torch import nn


def attach(model: nn.Module, profile: ArchitectureProfile, config: NoOptions) -> nn.Module:
    """Marks every floating-point parameter trainable."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def memory(profile: ArchitectureProfile, config: NoOptions) -> MemoryTerms:
    return MemoryTerms(trainable=profile.parameters, matrices=every_matrix(profile))


@hookimpl
def luthier_adapters() -> Iterable[Adapter[NoOptions]]:
    yield Adapter(
        name="full",
        summary="Every parameter trains.",
        provides=frozenset({"params.full_rank", "embeddings.trained"}),
        conflicts=frozenset({"weights.quantized", "model.prequantized"}),
        attach=attach,
        merge=lambda model: model,
        memory=memory,
        priority=10,
    )
