"""How large the largest block will be, from the profile: before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.contracts import MemoryTerms
from luthier.core.profile import ArchitectureProfile
from luthier.core.scoring import SCORE
from luthier.core.targets import every_target

if TYPE_CHECKING:
    from luthier.plugins.badam import BAdamConfig


def largest_block(profile: ArchitectureProfile, config: BAdamConfig, trained: MemoryTerms) -> int:
    """Parameters of the largest block among those that another method made trainable, at the most all of them.

    Where that method says which roles and shapes train, only modules of these count; a layer counts whole where it does not.
    """
    known = {(matrix.role, matrix.shape) for matrix in trained.matrices if len(matrix.shape) > 1}
    layers: dict[int, int] = {}
    outside = [0]
    for target in every_target(profile):
        matrix = target.matrix
        if known and len(matrix.shape) > 1 and (matrix.role, matrix.shape) not in known:
            continue
        if target.layer is not None:
            layers[target.layer] = layers.get(target.layer, 0) + target.group.parameters
        elif len(matrix.shape) > 1 and (config.embeddings or target.role == SCORE):
            outside.append(target.group.parameters)
    sizes = [layers[number] for number in sorted(layers)]
    width = config.layers_per_block
    joined = [sum(sizes[start : start + width]) for start in range(0, len(sizes), width)]
    return min(trained.trainable, max([*joined, *outside]))
