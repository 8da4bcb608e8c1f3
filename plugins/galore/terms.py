"""The memory of GaLore's state and gradients, tensor by tensor.

projected     ours                  4 (projectors + 2 x small)      bytes, small = numbers of a projected gradient
              galore-torch          projectors + 2 x small          numbers in the weight's format
              galore-torch, 8 bits  projectors in that format, and two bytes and two scales per 256 for each of small
others        ours, galore-torch    2 x size                        numbers in the parameter's format
              galore-torch, 8 bits  as above, from 4096 numbers on

gradients     layerwise             4 x small bytes where projected, whole elsewhere
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from luthier.core.contracts import Matrix, MemoryTerms, StateSize
from luthier.core.profile import ArchitectureProfile
from luthier.core.targets import every_matrix, every_target
from luthier.plugins.galore.shapes import fits, projected_numbers, projector_numbers
from luthier.plugins.galore.weights import rank_of, selected

if TYPE_CHECKING:
    from luthier.plugins.galore import GaloreConfig

FLOAT32: Final = 4
# bitsandbytes: blocks that share a scale, and the size below which state stays in float32.
BLOCK: Final = 256
MIN_8BIT: Final = 4096


def memory_terms(profile: ArchitectureProfile, config: GaloreConfig) -> MemoryTerms:
    """By role and shape; for trained tensors of unknown shape, the mean over the whole model."""
    rank, part = rank_of(profile, config), _projected_part(profile, config)

    def state(matrix: Matrix) -> StateSize:
        whole = _state_of_other(config, matrix)
        projected = _state_of_projected(config, matrix, rank) if part(matrix) else whole
        return _mix(part(matrix), projected, whole)

    def gradient(matrix: Matrix) -> StateSize:
        whole = StateSize(numbers=matrix.size)
        small = StateSize(bytes=FLOAT32 * projected_numbers(matrix.shape, rank, config.proj_type)) if part(matrix) else whole
        return _mix(part(matrix), small, whole)

    mean_state, mean_gradient = (_mean(profile, size) for size in (state, gradient))
    terms = MemoryTerms(optimizer_state=state, optimizer_copies=mean_state.numbers, optimizer_bytes=mean_state.bytes)
    if not config.layerwise:
        return terms
    scale = mean_gradient.numbers + mean_gradient.bytes / FLOAT32
    return dataclasses.replace(terms, gradient=gradient, gradient_scale=scale)


def _state_of_projected(config: GaloreConfig, matrix: Matrix, rank: int) -> StateSize:
    small = projected_numbers(matrix.shape, rank, config.proj_type)
    projectors = projector_numbers(matrix.shape, rank, config.proj_type)
    if config.backend == "ours":
        return StateSize(bytes=FLOAT32 * (projectors + 2 * small))
    if config.bits == 8:
        return StateSize(numbers=projectors, bytes=_bytes_8bit(small))
    return StateSize(numbers=projectors + 2 * small)


def _state_of_other(config: GaloreConfig, matrix: Matrix) -> StateSize:
    return StateSize(bytes=_bytes_8bit(matrix.size)) if config.bits == 8 else StateSize(numbers=2 * matrix.size)


def _bytes_8bit(numbers: int) -> float:
    """Two moments of bitsandbytes."""
    return 2 * FLOAT32 * numbers if numbers < MIN_8BIT else 2 * (numbers + FLOAT32 * math.ceil(numbers / BLOCK))


def _projected_part(profile: ArchitectureProfile, config: GaloreConfig) -> Callable[[Matrix], float]:
    """How many of the tensors of a role and shape are projected: all (1), none (0), or those of some layers only."""
    rank = rank_of(profile, config)
    meant = Counter((one.role, one.group.shape) for one in selected(profile, config).targets)
    every = Counter((one.role, one.group.shape) for one in every_target(profile))

    def part(matrix: Matrix) -> float:
        if not fits(matrix.shape, rank):
            return 0.0
        if profile.tied_embeddings and matrix.role in ("embed", "head"):
            return float(any(meant[role, matrix.shape] for role in ("embed", "head")))
        key = (matrix.role, matrix.shape)
        return meant[key] / every[key] if meant[key] else 0.0

    return part


def _mix(part: float, projected: StateSize, other: StateSize) -> StateSize:
    return StateSize(
        numbers=part * projected.numbers + (1 - part) * other.numbers,
        bytes=part * projected.bytes + (1 - part) * other.bytes,
    )


def _mean(profile: ArchitectureProfile, size: Callable[[Matrix], StateSize]) -> StateSize:
    """Per parameter of the whole model."""
    sizes = [(size(matrix), matrix.count) for matrix in every_matrix(profile)]
    total = max(profile.parameters, 1)
    return StateSize(
        numbers=sum(one.numbers * count for one, count in sizes) / total,
        bytes=sum(one.bytes * count for one, count in sizes) / total,
    )
