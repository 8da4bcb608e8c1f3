"""`adamw`: Adam with decoupled weight decay, torch's own (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, MemoryTerms, OptimizerMethod
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions, decay_groups
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(AdamOptions):
    """Options of `adamw`, with those of every optimizer."""


def build(model: nn.Module, config: AdamWConfig) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """torch.optim.AdamW over the trainable parameters; one fused kernel a step where every parameter allows it."""
    import torch

    groups = decay_groups(model, config.weight_decay)
    trained = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused), ()


def memory(profile: ArchitectureProfile, config: AdamWConfig) -> MemoryTerms:
    """Two moments per trainable parameter, in its own format: torch makes them like the parameter."""
    return MemoryTerms(optimizer_copies=2)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[AdamWConfig]]:
    yield OptimizerMethod(
        name="adamw",
        summary="Adam with decoupled weight decay, fused where torch can.",
        config=AdamWConfig,
        claims=frozenset({"optimizer.step"}),
        build=build,
        memory=memory,
        priority=100,
        reference="Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv:1711.05101",
    )
