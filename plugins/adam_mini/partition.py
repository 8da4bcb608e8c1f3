"""Which numbers of a parameter share one second moment: the partition of Adam-mini, from roles instead of names.

    queries, keys                    one for each head
    every other matrix               one for each output neuron; embeddings and head: one for each token
    fused queries, keys and values   heads of the queries, heads of the keys, neurons of the values, in this order
    fused experts                    one for each output neuron of each expert
    gain of a norm                   one for all of it
    biases and other vectors         one for each number, as in Adam

This is the paper's algorithm 3 with the values by neuron, as its authors' code has it. What has no role in the model, as an
adapter's factors, is a matrix or vector like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.contracts import Matrix
from luthier.core.profile import ArchitectureProfile, AttentionGroup, RoleGroup

BY_HEAD: Final = ("attn.q", "attn.k", "attn.qk", "cross.q", "cross.k")
Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Partition:
    """The blocks of one tensor.

    kept   dimensions along which blocks differ; the mean is taken over all others
    runs   (rows, rows of one block), ... along the last of `kept`: [(64, 16), (32, 1)] is four heads, then 32 neurons
    """

    kept: tuple[int, ...]
    runs: Runs

    def blocks(self, shape: Sequence[int]) -> int:
        """How many second moments a tensor of this shape has."""
        return math.prod(self.lead(shape)) * sum(rows // size for rows, size in self.runs)

    def lead(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the kept dimensions before the last, such as the number of experts."""
        return tuple(shape[dimension] for dimension in self.kept[:-1])


def partition(
    profile: ArchitectureProfile, shape: Sequence[int], place: tuple[str, RoleGroup] | None, *, name: str = ""
) -> Partition:
    """The partition of a parameter of this `shape`; `place` is its role and group, None where it has none."""
    role, group = place if place is not None else ("", None)
    if name.endswith("bias"):
        return _each(shape)
    if len(shape) < 2:
        return Partition((0,), ((shape[0], shape[0]),)) if role == "norm" and shape else _each(shape)
    if group is None or group.shape != tuple(shape):
        # The factor of an update of embeddings that lies (rank, tokens): tokens are columns there.
        return _rows(shape, 1 if "lora_embedding_A" in name else 0)
    if group.kind == "conv1d":
        return Partition((1,), _runs(profile, role, group, shape[1]))
    if group.kind == "parameter" and len(shape) == 3:
        return _experts(profile, shape, group)
    return Partition((0,), _runs(profile, role, group, shape[0]))


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
    return Partition(tuple(range(len(shape))) or (0,), ((shape[-1] if shape else 1, 1),))


def _rows(shape: Sequence[int], dimension: int) -> Partition:
    return Partition((dimension,), ((shape[dimension], 1),))


def _runs(profile: ArchitectureProfile, role: str, group: RoleGroup, rows: int) -> Runs:
    """How the output neurons of a projection go together."""
    attention = _attention(profile, group)
    if attention is None or not attention.head_dim:
        return ((rows, 1),)
    size = attention.head_dim
    if role in BY_HEAD and rows % size == 0:
        return ((rows, size),)
    if role == "attn.qkv":
        queries_and_keys = (attention.heads + attention.kv_heads) * size
        values = attention.kv_heads * attention.value_dim
        if queries_and_keys + values == rows:
            return ((queries_and_keys, size), (values, 1))
    return ((rows, 1),)


def _attention(profile: ArchitectureProfile, group: RoleGroup) -> AttentionGroup | None:
    layers = set(group.layers)
    return next((one for one in profile.attention if layers & set(one.layers) and one.kind not in ("linear", "none")), None)


def _experts(profile: ArchitectureProfile, shape: Sequence[int], group: RoleGroup) -> Partition:
    """(experts, out, in), or (experts, in, out): where the sizes are equal, the other matrix of the experts tells which."""
    siblings = [one for one in (group, *profile.groups("experts")) if one.kind == "parameter" and len(one.shape) == 3]
    oblong = next((one for one in siblings if one.in_features != one.out_features), group)
    if oblong.shape[1:] == (oblong.out_features, oblong.in_features):
        return Partition((0, 1), ((shape[1], 1),))
    if oblong.shape[1:] == (oblong.in_features, oblong.out_features):
        return Partition((0, 2), ((shape[2], 1),))
    return _rows(shape, 0)
