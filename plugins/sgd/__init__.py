"""`sgd`: gradient descent with momentum, torch's own (Sutskever et al. 2013, proceedings.mlr.press/v28/sutskever13.html)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, MemoryTerms, OptimizerMethod
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import decay_groups
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.schedule import OptimizerOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class SGDConfig(OptimizerOptions):
    """Options of `sgd`, with those of every optimizer."""

    lr: float = option(1e-2, "Peak learning rate, in units of the gradient: nothing normalises it as Adam does.", gt=0)
    momentum: float = option(0.9, "Decay of the sum of past gradients; 0 keeps no state at all.", ge=0, lt=1)
    nesterov: bool = option(False, "Look one step ahead along the momentum.")
    weight_decay: float = option(
        0.0, "L2 penalty on matrices: this times the weight is added to the gradient; norms and biases have none.", ge=0
    )

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, which is 0")


def build(model: nn.Module, config: SGDConfig) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """torch.optim.SGD over the trainable parameters.

    Not its fused kernel: with momentum that fails for a parameter whose first gradient comes after the first step, as an
    expert's may (torch 2.13).
    """
    import torch

    groups = decay_groups(model, config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov), ()


def memory(profile: ArchitectureProfile, config: SGDConfig) -> MemoryTerms:
    """One momentum per trainable parameter, in its own format; nothing without momentum."""
    return MemoryTerms(optimizer_copies=1 if config.momentum else 0)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[SGDConfig]]:
    yield OptimizerMethod(
        name="sgd",
        summary="Gradient descent with momentum, or without any state.",
        config=SGDConfig,
        claims=frozenset({"optimizer.step"}),
        build=build,
        memory=memory,
        reference="Sutskever et al. 2013, On the importance of initialization and momentum in deep learning, ICML",
    )
