"""`checkpointing`: decoder layers keep only their input and are computed again in the backward pass.

Chen et al. 2016, arXiv:1604.06174: memory for at most a third more computation, with the same numbers. Which layers do
it is a choice between the two: `every: 2` gives back half of the time for about half of the memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.context import BuildContext
from luthier.core.contracts import MemoryTerms, ModelPatch, Support, Undo
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.memory import layer_elements_per_token
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class CheckpointingConfig:
    """Options of `checkpointing`."""

    every: int = option(1, "Of the decoder layers every n-th recomputes, beginning with the first: 1 is all of them.", ge=1)
    layers: tuple[int, ...] | None = option(
        None, "Only these decoder layers recompute, negative numbers counted from the end; null stands for `every`."
    )
    offload: bool = option(
        False, "What a recomputed layer keeps, its input, waits in the host's pinned memory instead of on the device."
    )

    def __post_init__(self) -> None:
        if self.layers is not None and not self.layers:
            raise ValueError("layers names no layer; leave it out for all of them")
        if self.layers is not None and self.every != 1:
            raise ValueError("give either `every` or `layers`: both say which layers recompute")

    def chosen(self, count: int) -> tuple[int, ...]:
        """The layers of a decoder of `count` that recompute, in order, each once; numbers outside it are left out."""
        if self.layers is None:
            return tuple(range(0, count, self.every))
        return tuple(sorted({layer % count for layer in self.layers if -count <= layer < count}))


def supports(profile: ArchitectureProfile, environment: Environment, config: CheckpointingConfig) -> Support:
    if not profile.gradient_checkpointing:
        return Support.no(f"transformers' {profile.architecture} does not offer it")
    outside = [layer for layer in config.layers or () if not -profile.layers <= layer < profile.layers]
    if outside:
        return Support.no(
            f"{profile.model_type} has no layers {', '.join(map(str, outside))}",
            f"layers go from 0 to {profile.layers - 1}, or back from -1",
        )
    if config.offload and environment.device != "cuda":
        return Support.missing(
            f"offload moves layer inputs from a cuda device to the host, and this run is on the {environment.device}",
            "leave out offload",
        )
    if profile.layers > 1 and _at_the_peak(profile, config) >= layer_elements_per_token(profile) * profile.layers:
        return Support.no(
            "recomputing the last layer alone saves nothing: it is computed again before any other activation is freed",
            "choose earlier layers",
        )
    return Support.yes()


def memory(profile: ArchitectureProfile, config: CheckpointingConfig) -> MemoryTerms:
    """The highest of: before the backward pass, and while any one recomputed layer holds its activations again.

    With H numbers a token for a layer's input and K for all that a layer keeps: a recomputed layer keeps H (0 on the
    device where it is offloaded), any other K. The backward pass frees layers from the last on, so that the K of a layer
    that is computed again comes on top of the whole sum only where that is the last layer. It stands apart from the factor,
    because an adapter that leaves lower layers out of the backward pass takes their share away, and none of this K.
    """
    kept, layers = layer_elements_per_token(profile), profile.layers
    if not layers or not kept:
        return MemoryTerms()
    chosen = config.chosen(layers)
    inputs = 0 if config.offload else profile.hidden_size
    numbers = (layers - len(chosen)) * kept + len(chosen) * inputs
    again = kept if layers - 1 in chosen else 0
    return MemoryTerms(activation_scale=numbers / (layers * kept), recomputed=again)


def _at_the_peak(profile: ArchitectureProfile, config: CheckpointingConfig) -> float:
    """Numbers per token of all layers at that moment, when every layer takes part in the backward pass."""
    terms = memory(profile, config)
    return terms.activation_scale * layer_elements_per_token(profile) * profile.layers + terms.recomputed


def apply(
    model: nn.Module | None, profile: ArchitectureProfile, config: CheckpointingConfig, context: BuildContext | None = None
) -> Undo:
    """Marks the chosen layers for transformers' own checkpointing; raises NothingPatched where one does not take it."""
    from luthier.plugins.checkpointing.marking import mark_layers

    assert model is not None
    undo, marked, count = mark_layers(model, profile, config)
    if context is not None:
        context.notice(
            f"checkpointing: {marked} of {count} decoder layers recompute"
            + (", their inputs wait in the host's memory" if config.offload else "")
        )
    return undo


@hookimpl
def luthier_model_patches() -> Iterable[ModelPatch[CheckpointingConfig]]:
    yield ModelPatch(
        name="checkpointing",
        summary="Recomputes activations in the backward pass instead of keeping them.",
        config=CheckpointingConfig,
        provides=frozenset({"activations.recomputed"}),
        claims=frozenset({"layer.checkpoint"}),
        supports=supports,
        memory=memory,
        apply=apply,
        phase="attached",
        reference="Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174",
    )
