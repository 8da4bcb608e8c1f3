"""`lora_fa`: A stays as it was drawn; B takes the step nearest to the full gradient's (Zhang et al. 2023, arXiv:2308.03303).

Ours, over torch's AdamW. PEFT's `create_lorafa_optimizer` takes the correction in bfloat16 whatever the weights are, pairs
parameters by position, which modules trained whole upset, stops at a B without gradient, and decays vectors;
tests/methods/test_lora_fa.py compares the two where it works.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, Declaration, Matrix, MemoryTerms, OptimizerMethod, StateSize
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions, decay_groups, fusible
from luthier.core.profile import ArchitectureProfile
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

FLOAT32 = 4
# Of the vocabulary, single rows may train: (tokens, hidden), which is the form of an A.
ROWS = ("embed", "head")
MAGNITUDE = (
    "its step is the nearest to the full gradient's only where the update is s B A; a magnitude scales each row of it"
)


@dataclass(frozen=True, kw_only=True)
class LoraFaConfig(AdamOptions):
    """Options of `lora_fa`, with those of every optimizer."""


def build(model: nn.Module, config: LoraFaConfig) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """Freezes every A of a linear layer, and returns the optimizer of B and of whatever else trains."""
    from luthier.plugins.lora_fa.optimizer import LoraFa, freeze_a

    updates = freeze_a(model)
    groups = decay_groups(model, config.weight_decay)
    options = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": fusible(groups)}
    return LoraFa(groups, updates, **options), ()


def declares(profile: ArchitectureProfile, config: LoraFaConfig) -> Declaration:
    """Why it does not go with a magnitude, such as DoRA's."""
    return Declaration(reasons=FrozenDict({"adapter.magnitude": MAGNITUDE}))


def is_frozen_a(profile: ArchitectureProfile, matrix: Matrix) -> bool:
    """Whether a trained tensor of the adapter is an A, (rank, in): told by its role and shape alone.

    Never of embeddings and head, where token rows that train, (tokens, in), look the same.
    """
    return matrix.role not in ROWS and any(
        len(matrix.shape) == 2
        and matrix.shape[1] == group.in_features
        and matrix.shape != group.shape  # a module that trains whole
        and group.kind != "embedding"
        for group in profile.groups(matrix.role)
    )


def frozen_numbers(profile: ArchitectureProfile, trained: Sequence[Matrix]) -> int:
    """Numbers of every A among the tensors of an adapter; that of a head is told from token rows by its B, (out, rank)."""

    def is_heads_a(matrix: Matrix) -> bool:
        return matrix.role == "head" and any(
            matrix.shape == (one.shape[1], group.in_features) != group.shape
            for group in profile.groups("head")
            for one in trained
            if one.role == "head" and len(one.shape) == 2 and one.shape[0] == group.out_features
        )

    return sum(one.size * one.count for one in trained if is_frozen_a(profile, one) or is_heads_a(one))


def gram_numbers(profile: ArchitectureProfile, matrix: Matrix) -> int:
    """Numbers of (A A^T)^-1, which is kept beside every B, (out, rank x experts)."""
    for group in profile.groups(matrix.role):
        if len(matrix.shape) == 2 and matrix.shape[0] == group.out_features and matrix.shape != group.shape:
            experts = group.experts if group.kind == "parameter" and group.experts else 1
            return matrix.shape[1] ** 2 // experts
    return 0


def memory(profile: ArchitectureProfile, config: LoraFaConfig) -> MemoryTerms:
    """Two moments for what trains, which is the adapter's matrices without every A; A gets no gradient either.

    The A of a head is counted as if it had moments, 8 bytes a number too many: by itself it looks like token rows, which do.
    """

    def state(matrix: Matrix) -> StateSize:
        if is_frozen_a(profile, matrix):
            return StateSize()
        return StateSize(numbers=2 * matrix.size, bytes=FLOAT32 * gram_numbers(profile, matrix))

    def moved(trained: MemoryTerms) -> int:
        return trained.trainable - frozen_numbers(profile, trained.matrices)

    return MemoryTerms(optimizer_copies=2, optimizer_state=state, moved_at_once=moved)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[LoraFaConfig]]:
    yield OptimizerMethod(
        name="lora_fa",
        summary="Trains only the B of low-rank updates, by gradients corrected towards the full one.",
        config=LoraFaConfig,
        requires=(any_of("adapter.low_rank"),),
        conflicts=frozenset({"adapter.magnitude"}),
        claims=frozenset({"optimizer.step"}),
        declares=declares,
        build=build,
        memory=memory,
        reference="Zhang et al. 2023, LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning, "
        "arXiv:2308.03303",
    )
