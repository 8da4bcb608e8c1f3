"""`freeze`: whole weights of a part of the model train, all others stay as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import Adapter, Declaration, MemoryTerms, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class FreezeConfig:
    """Options of `freeze`."""

    layers: int | tuple[int, ...] = option(
        2,
        "Decoder layers that train: the last n, the first n where n is negative, none for 0, or a list of layer numbers, "
        "negative ones counted from the end.",
    )
    target: tuple[str, ...] | None = option(
        None,
        "Within these layers: roles, role groups or module names (`attn`, `mlp.down`, `experts`, `norm`, `q_proj`, ...); "
        "null trains the layers whole.",
    )
    extra: tuple[str, ...] = option(
        (), "Modules outside the layers that train too, by role or name: `norm` (the final norm), `head`, ..."
    )
    embeddings: bool = option(
        False, "Train the token embeddings too; where they are tied, that is the matrix of the output head as well."
    )

    def __post_init__(self) -> None:
        if isinstance(self.layers, tuple) and len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers: a layer is named twice in {list(self.layers)}")
        if self.target is not None and not self.target:
            raise ValueError("target: names nothing; write null for whole layers")
        if self.layers in (0, ()) and self.target is not None:
            raise ValueError("target: names modules of the layers, and no layer trains")
        if self.layers in (0, ()) and not self.extra and not self.embeddings:
            raise ValueError("nothing would train: give layers, extra or embeddings")


def supports(profile: ArchitectureProfile, environment: Environment, config: FreezeConfig) -> Support:
    """No where a layer or a word means nothing in this model; a note where tied matrices make more train than was named."""
    from luthier.plugins.freeze import parts

    return parts.check(profile, config)


def declares(profile: ArchitectureProfile, config: FreezeConfig) -> Declaration:
    """Whether the rows of the vocabulary are among what trains."""
    from luthier.core.targets import holds_vocabulary
    from luthier.plugins.freeze import parts

    trained = holds_vocabulary(profile, parts.parts_of(profile, config).outside)
    return Declaration(provides=frozenset({"embeddings.trained"} if trained else ()))


def memory(profile: ArchitectureProfile, config: FreezeConfig) -> MemoryTerms:
    """Exact where detection classified the layers; no activation is kept below the first module that trains."""
    from luthier.plugins.freeze import parts

    return parts.terms(profile, config)


def attach(model: nn.Module, profile: ArchitectureProfile, config: FreezeConfig) -> nn.Module:
    from luthier.plugins.freeze import parts

    return parts.mark_trainable(model, profile, config)


@hookimpl
def luthier_adapters() -> Iterable[Adapter[FreezeConfig]]:
    yield Adapter(
        name="freeze",
        summary="Whole weights of some layers or modules train, the rest is frozen.",
        config=FreezeConfig,
        provides=frozenset({"base.partly_frozen", "params.full_rank"}),
        conflicts=frozenset({"weights.quantized", "model.prequantized"}),
        declares=declares,
        supports=supports,
        attach=attach,
        merge=lambda model: model,
        memory=memory,
        reference="Lee, Tang and Lin 2019, What Would Elsa Do? Freezing Layers During Fine-Tuning, arXiv:1911.03090",
    )
