"""`lora_fa`: A stays as it was drawn; B takes the step nearest to the full gradient's (Zhang et al. 2023, arXiv:2308.03303).

Ours, over torch's AdamW. PEFT's `create_lorafa_optimizer` takes the correction in bfloat16 whatever the weights are, pairs
parameters by position, which DoRA's magnitudes and modules trained whole upset, stops at a B without gradient, and decays
vectors; tests/methods/test_lora_fa.py compares the two where it works.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, Matrix, MemoryTerms, OptimizerMethod, StateSize
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions, decay_groups, fusible
from luthier.core.profile import ArchitectureProfile
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


FLOAT32 = 4


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


def is_frozen_a(profile: ArchitectureProfile, matrix: Matrix) -> bool:
    """Whether a trained tensor of the adapter is an A, (rank, in): told by its role and shape alone."""
    return any(
        len(matrix.shape) == 2
        and matrix.shape[1] == group.in_features
        and matrix.shape != group.shape  # a module that trains whole
        and group.kind != "embedding"
        for group in profile.groups(matrix.role)
    )


def gram_numbers(profile: ArchitectureProfile, matrix: Matrix) -> int:
    """Numbers of (A A^T)^-1, which is kept beside every B, (out, rank x experts)."""
    for group in profile.groups(matrix.role):
        if len(matrix.shape) == 2 and matrix.shape[0] == group.out_features and matrix.shape != group.shape:
            experts = group.experts if group.kind == "parameter" and group.experts else 1
            return matrix.shape[1] ** 2 // experts
    return 0


def memory(profile: ArchitectureProfile, config: LoraFaConfig) -> MemoryTerms:
    """Two moments for what trains, which is the adapter's matrices without every A; A gets no gradient either."""

    def state(matrix: Matrix) -> StateSize:
        if is_frozen_a(profile, matrix):
            return StateSize()
        return StateSize(numbers=2 * matrix.size, bytes=FLOAT32 * gram_numbers(profile, matrix))

    def moved(trained: MemoryTerms) -> int:
        return trained.trainable - sum(one.size * one.count for one in trained.matrices if is_frozen_a(profile, one))

    return MemoryTerms(optimizer_copies=2, optimizer_state=state, moved_at_once=moved)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[LoraFaConfig]]:
    yield OptimizerMethod(
        name="lora_fa",
        summary="Trains only the B of low-rank updates, by gradients corrected towards the full one.",
        config=LoraFaConfig,
        requires=(any_of("adapter.low_rank"),),
        claims=frozenset({"optimizer.step"}),
        build=build,
        memory=memory,
        reference="Zhang et al. 2023, LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning, "
        "arXiv:2308.03303",
    )
