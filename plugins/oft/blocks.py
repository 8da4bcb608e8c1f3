"""The blocks that `oft` rotates, told from a profile: whether they fit, how many parameters they have, what they keep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from luthier.core.contracts import Matrix, MemoryTerms, Support
from luthier.core.profile import ArchitectureProfile
from luthier.core.scoring import score_targets
from luthier.core.targets import Selection, select
from luthier.core.targets import check as check_selection

if TYPE_CHECKING:
    from luthier.plugins.oft import OftConfig


def selected(profile: ArchitectureProfile, config: OftConfig) -> Selection:
    """The modules to adapt."""
    return select(profile, config.target, exclude=config.exclude, layers=config.layers)


def check(profile: ArchitectureProfile, config: OftConfig) -> Support:
    """No where PEFT has no rotation for a target, or where the blocks do not divide its inputs."""
    selection = selected(profile, config)
    support = check_selection(profile, selection)
    if not support:
        return support
    transposed = selection.kinds("conv1d")
    if transposed:
        return Support.no(
            f"{transposed[0].group.pattern} of {profile.model_type} is a Conv1D, whose weight is transposed; PEFT's OFT has "
            "no layer for it",
            "take `lora`",
        )
    inputs = sorted({target.group.in_features or 0 for target in selection.targets})
    for target in selection.targets:
        width = target.group.in_features or 0
        if config.size_for(width) >= 2:
            continue
        common = math.gcd(*inputs)
        if config.blocks:
            reason = (
                f"blocks: {config.blocks} blocks do not divide the {width} inputs of {target.name} into two or more each"
            )
            return Support.no(reason, f"{common} is divisible; take one of its divisors up to {common // 2}")
        reason = f"block_size: {config.size} does not divide the {width} inputs of {target.name}"
        return Support.no(reason, f"take a divisor of {common}, which all targets are divisible by")
    if profile.tied_embeddings and any(target.role == "head" for target in selection.targets):
        return Support.no(
            f"the head of {profile.model_type} shares its matrix with the embeddings: a rotation of one could not be merged",
            "leave `head` out of target",
        )
    return Support.yes()


def terms(profile: ArchitectureProfile, config: OftConfig) -> MemoryTerms:
    """Parameters by shape; bytes that autograd keeps of each rotation, and those of the index of its upper triangle."""
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    kept = inputs = 0
    for target in selected(profile, config).targets:
        width = target.group.in_features or 0
        size = config.size_for(width)
        if size < 2:
            continue
        blocks = width // size
        own = 1 if config.share_blocks else blocks
        shape = (own, size * (size - 1) // 2)
        counts[target.role, shape] = counts.get((target.role, shape), 0) + 1
        inputs += width
        # The series keeps the powers 1 to n - 2; a solution its factors, itself and the pivots. Both, the rotation.
        matrices, pivots = (config.neumann_terms - 2, 0) if config.cayley == "neumann" else (2, own * size)
        kept += 4 * (size * size * (matrices * own + blocks) + pivots) + 16 * shape[1]
    for target in score_targets(profile):
        counts[target.role, target.group.shape] = 1
    matrices_by_shape = tuple(Matrix(role=role, shape=shape, count=count) for (role, shape), count in counts.items())
    added = sum(matrix.size * matrix.count for matrix in matrices_by_shape)
    return MemoryTerms(
        trainable=added, added=added, trainable_bytes=4, matrices=matrices_by_shape, cast_inputs=inputs, constant=kept
    )
