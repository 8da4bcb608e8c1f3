"""Which parameters of a model `freeze` lets train: told from the profile for the plan, marked on the model for the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import MemoryTerms, NothingPatched, Support
from luthier.core.profile import ArchitectureProfile
from luthier.core.scoring import SCORE, score_targets
from luthier.core.targets import Target, every_target, matching, whole

if TYPE_CHECKING:
    from torch import nn

    from luthier.plugins.freeze import FreezeConfig


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What trains: decoder layers, modules inside and outside them, a score head in any case; and what was named in vain.

    `whole` says that every parameter of the layers trains, also those that no module of `inside` holds.
    """

    layers: tuple[int, ...]
    whole: bool
    inside: tuple[Target, ...]
    outside: tuple[Target, ...]
    no_layers: tuple[int, ...] = ()
    no_target: tuple[str, ...] = ()
    no_extra: tuple[str, ...] = ()


def parts_of(profile: ArchitectureProfile, config: FreezeConfig) -> Parts:
    """The options resolved against a model."""
    count = profile.layers
    outside_model: tuple[int, ...]
    if isinstance(config.layers, int):
        chosen = set(range(max(0, count - config.layers), count) if config.layers > 0 else range(min(count, -config.layers)))
        outside_model = (config.layers,) if abs(config.layers) > count else ()
    else:
        chosen = {layer + count if layer < 0 else layer for layer in config.layers} & set(range(count))
        outside_model = tuple(layer for layer in config.layers if not -count <= layer < count)
    everything = every_target(profile)
    layered = [one for one in everything if one.layer is not None]
    others = [one for one in everything if one.layer is None]
    targets = {word: matching(word, layered) for word in config.target or ("*",)}
    extra = {word: matching(word, others) for word in config.extra}
    inside = {one.name: one for found in targets.values() for one in found if one.layer in chosen}
    outside = {one.name: one for found in extra.values() for one in found}
    if config.embeddings:
        outside |= {one.name: one for one in others if one.role == "embed"}
    outside |= {one.name: one for one in score_targets(profile)}
    return Parts(
        layers=tuple(sorted(chosen)),
        whole=config.target is None,
        inside=tuple(inside.values()),
        outside=tuple(outside.values()),
        no_layers=outside_model,
        no_target=tuple(word for word, found in targets.items() if not found and config.target is not None),
        no_extra=tuple(word for word, found in extra.items() if not found),
    )


# ---- for the plan


def check(profile: ArchitectureProfile, config: FreezeConfig) -> Support:
    """No with the layer or word that means nothing here; a note where the head cannot train without the embeddings."""
    parts = parts_of(profile, config)
    model, last = profile.model_type, profile.layers - 1
    if parts.no_layers:
        numbers = ", ".join(map(str, parts.no_layers))
        return Support.no(f"layers: {numbers}, and {model} has {profile.layers} layers", f"layers go from 0 to {last}")
    if parts.no_target:
        has = ", ".join(dict.fromkeys(one.role for one in every_target(profile) if one.layer is not None))
        reason = f"target: nothing inside the layers of {model} is called {parts.no_target[0]!r}"
        return Support.no(reason, f"take target from: {has}; what stands outside the layers goes into extra")
    if parts.no_extra:
        has = ", ".join(dict.fromkeys(one.role for one in every_target(profile) if one.layer is None))
        reason = f"extra: nothing outside the layers of {model} is called {parts.no_extra[0]!r}"
        return Support.no(reason, f"take extra from: {has}; what stands inside the layers goes into target")
    if config.embeddings and not profile.has("embed"):
        return Support.no(f"embeddings: {model} has no token embeddings that were recognised", "see `luthier profile`")
    if not terms(profile, config).trainable:
        return Support.no(f"what was named holds no parameter of {model}", "widen target or layers")
    if profile.tied_embeddings and not config.embeddings and any(one.role == "head" for one in parts.outside):
        return Support.experimental(f"the head of {model} shares its matrix with the embeddings: both train")
    return Support.yes()


def terms(profile: ArchitectureProfile, config: FreezeConfig) -> MemoryTerms:
    """The trained tensors by role and shape, and the part of the layers whose activations the backward pass needs."""
    parts = parts_of(profile, config)
    matrices = whole(profile, (*parts.inside, *parts.outside), layers=len(parts.layers) if parts.whole else 0)
    return MemoryTerms(
        trainable=sum(matrix.size * matrix.count for matrix in matrices),
        matrices=matrices,
        activation_scale=_kept_layers(profile, parts) / profile.layers if profile.layers else 1.0,
    )


def _kept_layers(profile: ArchitectureProfile, parts: Parts) -> int:
    """Layers from the first that trains up: autograd keeps nothing of those below, which need no gradient."""
    final_norms = [one for one in every_target(profile) if one.layer is None and one.role == "norm"]
    for one in parts.outside:
        above = one.role == SCORE or (one.role == "head" and not profile.tied_embeddings)
        # A single norm outside the layers is the final one; of several, one may follow the embeddings.
        if not above and not (one.role == "norm" and len(final_norms) == 1):
            return profile.layers
    return profile.layers - min(parts.layers, default=profile.layers)


# ---- for the run


def mark_trainable(model: nn.Module, profile: ArchitectureProfile, config: FreezeConfig) -> nn.Module:
    """The same model, with `requires_grad` on the chosen parameters alone; raises NothingPatched naming what is missing."""
    parts = parts_of(profile, config)
    names = [target.name for target in (*parts.inside, *parts.outside)]
    if parts.whole:
        names += [f"{profile.decoder}.{layer}" for layer in parts.layers]
    chosen: list[nn.Parameter] = []
    for name in names:
        found = _parameters(model, name)
        if found is None:
            raise NothingPatched(f"freeze: the loaded model lacks {name}, which its profile names")
        chosen += found
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    if not chosen:
        raise NothingPatched("freeze: the chosen modules hold no parameter")
    return model


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter] | None:
    """Of the module of this name, or the parameter of this name; None where there is neither."""
    from torch import nn

    owner, _, leaf = name.rpartition(".")
    try:
        found = getattr(model.get_submodule(owner), leaf)
    except AttributeError:
        return None
    if isinstance(found, nn.Module):
        return list(found.parameters())
    return [found] if isinstance(found, nn.Parameter) else None
