"""Which matrices APOLLO projects, as a plan asks and as the loaded model has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from luthier.core.contracts import Matrix, NothingPatched, StateSize, Support
from luthier.core.optimizing import decay_groups, role_finder, trained_parameters
from luthier.core.profile import ArchitectureProfile
from luthier.core.targets import ALL, LINEAR_KINDS, Selection, check, matrices, select

if TYPE_CHECKING:
    from torch import nn

    from luthier.plugins.apollo import ApolloConfig

EVERYTHING: Final = ("attn", "cross", "mlp", "experts", "mixer")
TIED: Final = ("embed", "head")
FLOAT32: Final = 4


@lru_cache(maxsize=64)
def selected(profile: ArchitectureProfile, roles: tuple[str, ...]) -> Selection:
    """The modules that `roles` mean; of `all`, those that are matrices."""
    words = [word for word in EVERYTHING if profile.has(word)] if ALL in roles else []
    found = select(profile, [*words, *(word for word in roles if word != ALL)])
    if ALL not in roles:
        return found
    return Selection(targets=found.kinds(*LINEAR_KINDS, "parameter"), unmatched=found.unmatched, outside=found.outside)


@lru_cache(maxsize=64)
def _counts(profile: ArchitectureProfile, roles: tuple[str, ...]) -> dict[tuple[str, tuple[int, ...]], int]:
    return {(one.role, one.shape): one.count for one in matrices(selected(profile, roles).targets)}


def fits(shape: Sequence[int], rank: int) -> bool:
    """Whether a projection to this rank makes a matrix, or each of a stack of matrices, smaller."""
    return len(shape) in (2, 3) and min(shape[-2:]) > rank


def answer(profile: ArchitectureProfile, config: ApolloConfig) -> Support:
    """Yes, or what of `roles` and `rank` does not go with this model."""
    chosen = selected(profile, config.roles)
    reply = check(profile, chosen, linear_only=False)
    if not reply:
        return reply
    shapes = [target.group.shape for target in chosen.targets]
    if not any(fits(shape, config.rank) for shape in shapes):
        widest = max((min(shape[-2:]) for shape in shapes if len(shape) > 1), default=0)
        reason = f"rank {config.rank} makes no matrix smaller: the shorter side of the widest of them has {widest}"
        return Support.no(reason, f"take a rank below {widest}" if widest > 1 else "take other roles")
    return Support.yes()


def parameter_groups(model: nn.Module, profile: ArchitectureProfile, config: ApolloConfig) -> list[dict[str, Any]]:
    """The groups of `decay_groups`, the matrices that are projected in one of their own, with what their step needs.

    Raises NothingPatched when none of the parameters that train is projected.
    """
    chosen = selected(profile, config.roles)
    names = set(chosen.names)
    # Of a group that is meant whole, layers count too that a method added and the profile does not know.
    counts = Counter(target.group for target in chosen.targets)
    whole = {group for group, count in counts.items() if count == group.count}
    find = role_finder(profile)

    def is_meant(name: str, parameter: nn.Parameter) -> bool:
        place = find(name, parameter.shape)
        return name.removesuffix(".weight") in names or (place is not None and place[1] in whole)

    # A tied matrix has two names, and is meant when either is.
    meant = {id(one) for name, one in model.named_parameters(remove_duplicate=False) if is_meant(name, one)}
    projected = [one for one in trained_parameters(model).values() if id(one) in meant and fits(one.shape, config.rank)]
    if not projected:
        raise NothingPatched("apollo: of the matrices that `roles` name, none trains; train some of them, or take `adamw`")
    taken = {id(parameter) for parameter in projected}
    groups = decay_groups(model, config.weight_decay)
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]
    settings = {
        "rank": config.rank,
        "scale_type": config.scale_type,
        "scale": config.scale,
        "update_proj_gap": config.update_proj_gap,
        "weight_decay": config.weight_decay,
    }
    return [{"params": projected, **settings}, *(group for group in groups if group["params"])]


def _part(profile: ArchitectureProfile, config: ApolloConfig, matrix: Matrix) -> float:
    """How many of the tensors of a role and shape are meant: all (1), none (0), or those of some layers only."""
    meant = _counts(profile, config.roles)
    if profile.tied_embeddings and matrix.role in TIED:
        return float(any((role, matrix.shape) in meant for role in TIED))
    every = sum(group.count for group in profile.groups(matrix.role) if group.shape == matrix.shape)
    return meant.get((matrix.role, matrix.shape), 0) / every if every else 0.0


def state_of(profile: ArchitectureProfile, config: ApolloConfig, matrix: Matrix) -> StateSize:
    """The state of one trained tensor; an average, where `roles` has names that mean some modules of its role only."""
    plain = StateSize(numbers=2 * matrix.size)
    if not fits(matrix.shape, config.rank):
        return plain
    part = _part(profile, config, matrix)
    stack = matrix.shape[0] if len(matrix.shape) == 3 else 1
    projected = FLOAT32 * stack * (2 * config.rank * max(matrix.shape[-2:]) + 1)
    return StateSize(numbers=(1 - part) * plain.numbers, bytes=part * projected)
