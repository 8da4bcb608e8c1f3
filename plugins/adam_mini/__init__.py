"""`adam_mini`: AdamW with one second moment for each head, neuron or token (Zhang et al. 2024, arXiv:2406.16793).

Ours. The authors' `adam-mini` 1.1.1 goes by names (GPT-2's attention gets one second moment a matrix, its MLP one for each
input), takes heads to be hidden size / heads wide, stops at fused experts, and wants a process group as soon as the machine
has two GPUs. tests/methods/test_adam_mini.py compares the two where it works.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, Matrix, MemoryTerms, OptimizerMethod, StateSize
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class AdamMiniConfig(AdamOptions):
    """Options of `adam_mini`, with those of every optimizer."""


def build(model: nn.Module, config: AdamMiniConfig, profile: ArchitectureProfile) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """AdamMini over the trainable parameters, each partitioned by what the profile says it is for."""
    from luthier.core.optimizing import decay_groups, role_finder, trained_parameters
    from luthier.plugins.adam_mini.optimizer import AdamMini
    from luthier.plugins.adam_mini.partition import partition

    find = role_finder(profile)
    partitions = {
        parameter: partition(profile, parameter.shape, find(name, parameter.shape), name=name)
        for name, parameter in trained_parameters(model).items()
    }
    groups = decay_groups(model, config.weight_decay)
    return AdamMini(groups, partitions, lr=config.lr, betas=config.betas, eps=config.eps), ()


def memory(profile: ArchitectureProfile, config: AdamMiniConfig) -> MemoryTerms:
    """The first moment like the parameter, and a float32 number for each block of it."""
    from luthier.plugins.adam_mini.partition import partition_of_matrix

    def state(matrix: Matrix) -> StateSize:
        blocks = partition_of_matrix(profile, matrix).blocks(matrix.shape)
        return StateSize(numbers=matrix.size, bytes=FLOAT32 * blocks)

    return MemoryTerms(optimizer_copies=1, optimizer_state=state)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[AdamMiniConfig]]:
    yield OptimizerMethod(
        name="adam_mini",
        summary="AdamW with one second moment for each head, neuron or token: half the state.",
        config=AdamMiniConfig,
        claims=frozenset({"optimizer.step"}),
        build=build,
        memory=memory,
        reference="Zhang et al. 2024, Adam-mini: Use Fewer Learning Rates To Gain More, arXiv:2406.16793",
    )
