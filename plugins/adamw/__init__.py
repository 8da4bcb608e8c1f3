"""`adamw`: Adam with decoupled weight decay, torch's own (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, MemoryTerms, OptimizerMethod
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.schedule import OptimizerOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(OptimizerOptions):
    """Options of `adamw`, with those of every optimizer."""

    betas: tuple[float, float] = option((0.9, 0.999), "Decay of the running mean and of the running square of the gradient.")
    eps: float = option(1e-8, "Added to the root of the running square.", gt=0)
    weight_decay: float = option(0.0, "Decoupled weight decay on matrices; norms and biases are never decayed.", ge=0)

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")


def build(model: nn.Module, config: AdamWConfig) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """torch.optim.AdamW over the trainable parameters; one fused kernel a step where every parameter allows it."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in trained)
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused), ()


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
