"""Which numbers of a parameter share one second moment: the partition of Adam-mini, from roles instead of names.

    queries, keys               one for each head
    every other matrix          one for each output neuron; embeddings and head: one for each token
    fused experts               one for each output neuron of each expert
    gain of a norm              one for all of it
    biases and other vectors    one for each number, as in Adam

This is the paper's algorithm 3 with the values by neuron, as its authors' code has it. Fused queries, keys and values go
by neuron too: nothing in a profile tells [all q | all k | all v] (GPT-2, Phi-3) from [q k v] of one head after the other
(GPT-NeoX, BLOOM), and blocks of neurons are right in both. What has no role in the model, as an adapter's factors, is a
matrix or vector like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.contracts import Matrix
from luthier.core.profile import ArchitectureProfile, AttentionGroup, RoleGroup

BY_HEAD: Final = ("attn.q", "attn.k", "attn.qk", "cross.q", "cross.k")


@dataclass(frozen=True)
class Partition:
    """The blocks of one tensor.

    kept   dimensions along which blocks differ; the mean is taken over all others
    size   neighbours along the last of `kept` that share a block: 16 of 64 rows are four heads
    """

    kept: tuple[int, ...]
    size: int = 1

    def blocks(self, shape: Sequence[int]) -> int:
        """How many second moments a tensor of this shape has."""
        return math.prod(shape[dimension] for dimension in self.kept) // self.size if shape else 1


def partition(
    profile: ArchitectureProfile, shape: Sequence[int], place: tuple[str, RoleGroup] | None, *, name: str = ""
) -> Partition:
    """The partition of a parameter of this `shape`; `place` is its role and group, None where it has none."""
    role, group = place if place is not None else ("", None)
    if name.endswith("bias"):
        return _each(shape)
    if len(shape) < 2:
        return Partition((0,), shape[0]) if role == "norm" and shape else _each(shape)
    if group is None or group.shape != tuple(shape):
        # The factor of an update of embeddings that lies (rank, tokens): tokens are columns there.
        return Partition((1 if "lora_embedding_A" in name else 0,))
    if group.kind == "conv1d":
        return Partition((1,), _neighbours(profile, role, group, shape[1]))
    if group.kind == "parameter" and len(shape) == 3:
        return _experts(profile, group)
    return Partition((0,), _neighbours(profile, role, group, shape[0]))


def partition_of_matrix(profile: ArchitectureProfile, matrix: Matrix) -> Partition:
    """The partition of a tensor that a memory prediction asks about, of which only role and shape are known."""
    groups = profile.groups(matrix.role)
    found = next((group for group in groups if group.shape == matrix.shape), groups[0] if groups else None)
    if found is None:
        return partition(profile, matrix.shape, None)
    if found.bias and matrix.shape in ((found.out_features,), (found.experts, found.out_features)) and matrix.role != "norm":
        return _each(matrix.shape)
    factor = found.kind == "embedding" and found.shape != matrix.shape and len(matrix.shape) == 2
    turned = factor and matrix.shape[1] == found.in_features
    return partition(profile, matrix.shape, (matrix.role, found), name="lora_embedding_A" if turned else "")


def _each(shape: Sequence[int]) -> Partition:
    return Partition(tuple(range(len(shape))) or (0,))


def _neighbours(profile: ArchitectureProfile, role: str, group: RoleGroup, neurons: int) -> int:
    """How many output neurons of a projection share a block."""
    attention = _attention(profile, group) if role in BY_HEAD else None
    return attention.head_dim if attention and attention.head_dim and neurons % attention.head_dim == 0 else 1


def _attention(profile: ArchitectureProfile, group: RoleGroup) -> AttentionGroup | None:
    layers = set(group.layers)
    return next((one for one in profile.attention if layers & set(one.layers) and one.kind not in ("linear", "none")), None)


def _experts(profile: ArchitectureProfile, group: RoleGroup) -> Partition:
    """(experts, out, in), or (experts, in, out): where the sizes are equal, the other matrix of the experts tells which."""
    siblings = [one for one in (group, *profile.groups("experts")) if one.kind == "parameter" and len(one.shape) == 3]
    oblong = next((one for one in siblings if one.in_features != one.out_features), group)
    if oblong.shape[1:] == (oblong.out_features, oblong.in_features):
        return Partition((0, 1))
    if oblong.shape[1:] == (oblong.in_features, oblong.out_features):
        return Partition((0, 2))
    return Partition((0,))
