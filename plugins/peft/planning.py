"""What a plan asks about a tuner: does it go with this model, and what does PEFT make of the targets.

The size is asked of PEFT itself: the tuner is put on a skeleton of the model, its target modules alone, on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from luthier.core.contracts import Matrix, MemoryTerms, Support
from luthier.core.frozen import canonical_json
from luthier.core.profile import ArchitectureProfile
from luthier.core.scoring import score_targets
from luthier.core.targets import Selection, Target, every_target, select, whole
from luthier.core.targets import check as check_selection
from luthier.plugins.peft.tuners import ANY, REFUSED, TUNERS

if TYPE_CHECKING:
    from luthier.plugins.peft import PeftConfig


def selected(profile: ArchitectureProfile, config: PeftConfig) -> Selection:
    """The modules to adapt; of a tuner's own choice those that this model has."""
    words = config.target if config.target is not None else TUNERS[config.tuner].target
    if config.target is None and words != ("all",):
        words = tuple(word for word in words if profile.has(word))
    return select(profile, words, exclude=config.exclude, layers=config.layers)


def check(profile: ArchitectureProfile, config: PeftConfig) -> Support:
    """No with the reason: of the tuner, its options, the model, or what PEFT itself says to them."""
    if config.tuner in REFUSED:
        reason, fix = REFUSED[config.tuner]
        return Support.no(f"tuner: {config.tuner} does not work here: {reason}", fix)
    from luthier.plugins.peft import typed

    tuner = TUNERS[config.tuner]
    if typed.config_class(config.tuner) is None:
        return Support.missing(f"the installed PEFT has no tuner {config.tuner}", "pip install -U peft")
    reason, fix = typed.wrong(config.tuner, config.options)
    if reason:
        return Support.no(reason, fix)
    for key, reasons in tuner.refused.items():
        value = config.options.get(key)
        if value is not None and (ANY in reasons or value in reasons):
            return Support.no(f"options.{key}: {reasons.get(ANY) or reasons[value]}", "leave it out")
    if tuner.kind == "prompt":
        return _check_prompt(profile, config)
    support = _check_targets(profile, config)
    return support if not support else _ask(profile, config).support


def _check_targets(profile: ArchitectureProfile, config: PeftConfig) -> Support:
    tuner, selection = TUNERS[config.tuner], selected(profile, config)
    support = check_selection(profile, selection, linear_only=tuner.kind == "weights")
    if not support:
        return support
    if tuner.kind == "norms":
        odd = [target for target in selection.targets if target.role != "norm"]
        if odd:
            return Support.no(f"{odd[0].name} is no norm, and {config.tuner} trains norms only", "take target from: norm")
        empty = [target for target in selection.targets if not target.group.shape]
        if empty:
            return Support.no(f"{empty[0].name} of {profile.model_type} has no weight to train", "leave it out of target")
        return support
    transposed = selection.kinds("conv1d")
    if transposed and not tuner.conv1d:
        able = ", ".join(name for name, other in TUNERS.items() if other.conv1d and other.kind == "weights")
        where = f"{transposed[0].group.pattern} of {profile.model_type}"
        reason = f"{where} is a Conv1D, which PEFT's {config.tuner} has no layer for"
        return Support.no(reason, f"those that have one: {able}")
    if profile.tied_embeddings and any(target.role == "head" for target in selection.targets):
        reason = (
            f"the head of {profile.model_type} shares its matrix with the embeddings: an update of one could not be merged"
        )
        return Support.no(reason, "leave `head` out of target")
    return support


def _check_prompt(profile: ArchitectureProfile, config: PeftConfig) -> Support:
    if config.target is not None or config.exclude or config.layers is not None:
        return Support.no(f"target: {config.tuner} adapts no modules", "leave out target, exclude and layers")
    if not isinstance(config.options.get("num_virtual_tokens"), int) or config.options["num_virtual_tokens"] < 1:
        return Support.no(
            "options.num_virtual_tokens: is required", "give `num_virtual_tokens`, how many tokens are learned"
        )
    if config.tuner == "prefix_tuning" and prefix_shape(profile) is None:
        return Support.no(
            f"the layers of {profile.model_type} do not all keep keys and values of one size", "take `prompt_tuning`"
        )
    return Support.yes()


def prefix_shape(profile: ArchitectureProfile) -> tuple[int, int] | None:
    """(key-value heads, features of each), where all layers have softmax attention with the same ones."""
    kinds = {(group.kind, group.kv_heads, group.head_dim, group.value_dim) for group in profile.attention}
    layers = sum(len(group.layers) for group in profile.attention)
    if len({kind[1:] for kind in kinds}) != 1 or layers != profile.layers:
        return None
    kind, heads, size, value_size = next(iter(kinds))
    return (heads, size) if kind in ("mha", "gqa", "mqa") and size == value_size and heads else None


# ---- memory


def terms(profile: ArchitectureProfile, config: PeftConfig) -> MemoryTerms:
    """Float32 parameters of the tuner by role and shape; `constant` has the frozen tensors that it brings along."""
    tuner = TUNERS.get(config.tuner)
    if tuner is None:
        return MemoryTerms()
    if tuner.kind == "prompt":
        found, inputs = _Found(matrices=_prompt(profile, config)), 0
    else:
        found = _ask(profile, config)
        inputs = sum(target.group.in_features or 0 for target in selected(profile, config).targets)
    matrices = (*found.matrices, *whole(profile, score_targets(profile)))
    added = sum(matrix.size * matrix.count for matrix in matrices)
    return MemoryTerms(
        trainable=added,
        added=added,
        trainable_bytes=4,
        matrices=matrices,
        cast_inputs=inputs,
        constant=found.frozen_bytes,
    )


def _prompt(profile: ArchitectureProfile, config: PeftConfig) -> tuple[Matrix, ...]:
    tokens = int(config.options.get("num_virtual_tokens") or 0)
    if config.tuner == "prompt_tuning":
        return (Matrix(role="embed", shape=(tokens, profile.hidden_size)),)
    heads, size = prefix_shape(profile) or (0, 0)
    return (Matrix(role="embed", shape=(tokens, 2 * profile.layers * heads * size)),)


@dataclass(frozen=True)
class _Found:
    """What PEFT made of the skeleton, or why it would not."""

    matrices: tuple[Matrix, ...] = ()
    frozen_bytes: int = 0
    support: Support = field(default_factory=Support.yes)


def _ask(profile: ArchitectureProfile, config: PeftConfig) -> _Found:
    targets = selected(profile, config).targets
    sizes = tuple((target.name, target.role, target.group) for target in targets)
    names = frozenset(target.name for target in every_target(profile))
    return _asked(config.tuner, canonical_json(config.options), sizes, names)


@lru_cache(maxsize=256)
def _asked(tuner: str, options: str, sizes: tuple[tuple[str, str, Any], ...], names: frozenset[str]) -> _Found:
    """Cached: the matrix of combinations asks the same a hundred times."""
    import json

    from luthier.plugins.peft.skeleton import measure

    targets = [Target(name=name, role=role, layer=None, group=group) for name, role, group in sizes]
    try:
        matrices, frozen = measure(tuner, json.loads(options), targets, names)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return _Found(support=Support.no(f"options: PEFT's {tuner} does not take them here: {first}", "change `options`"))
    return _Found(matrices, frozen)
