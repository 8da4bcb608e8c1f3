"""`checkpointing`: decoder layers keep only their input and are computed again in the backward pass.

Chen et al. 2016, arXiv:1604.06174: memory for about a third more computation, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from luthier.core.contracts import MemoryTerms, ModelPatch, NothingPatched, Support, Undo
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.memory import layer_elements_per_token
from luthier.core.options import NoOptions
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn


def supports(profile: ArchitectureProfile, environment: Environment, config: NoOptions) -> Support:
    if not profile.gradient_checkpointing:
        return Support.no(f"transformers' {profile.architecture} does not offer it")
    return Support.yes()


def memory(profile: ArchitectureProfile, config: NoOptions) -> MemoryTerms:
    """Each layer keeps its input (H elements a token); one layer at a time holds all of its activations."""
    kept = layer_elements_per_token(profile)
    if not profile.layers or not kept:
        return MemoryTerms()
    return MemoryTerms(activation_scale=(profile.hidden_size * profile.layers + kept) / (kept * profile.layers))


def apply(model: nn.Module | None, profile: ArchitectureProfile, config: NoOptions) -> Undo:
    """Switches on transformers' own checkpointing, of the kind that needs no gradient at the input."""
    assert model is not None
    layers: Any = model
    if hasattr(layers, "activation_checkpointing_enable"):
        layers.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        undo: Undo = layers.activation_checkpointing_disable
    else:  # transformers before 5.23
        layers.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        undo = layers.gradient_checkpointing_disable
    if not any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise NothingPatched(f"checkpointing: no layer of {profile.architecture} took it")
    return undo


@hookimpl
def luthier_model_patches() -> Iterable[ModelPatch[NoOptions]]:
    yield ModelPatch(
        name="checkpointing",
        summary="Recomputes activations in the backward pass instead of keeping them.",
        provides=frozenset({"activations.recomputed"}),
        claims=frozenset({"layer.checkpoint"}),
        supports=supports,
        memory=memory,
        apply=apply,
        phase="attached",
        reference="Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174",
    )
