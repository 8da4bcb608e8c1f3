"""`lion`: steps of one size, by the sign of a momentum, through lion-pytorch (Chen et al. 2023, arXiv:2302.06675)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, MemoryTerms, OptimizerMethod
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import check_betas, decay_groups
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.schedule import OptimizerOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class LionConfig(OptimizerOptions):
    """Options of `lion`, with those of every optimizer."""

    lr: float = option(
        5e-5,
        "Peak learning rate: what every number moves in a step. The paper takes 3 to 10 times less than for AdamW.",
        gt=0,
    )
    betas: tuple[float, float] = option((0.9, 0.99), "Weight of the momentum in the step, and its decay from step to step.")
    weight_decay: float = option(
        0.0,
        "Decoupled weight decay on matrices, times the rate; norms and biases are never decayed. With a smaller rate the "
        "same decay needs a greater number than for AdamW.",
        ge=0,
    )

    def __post_init__(self) -> None:
        check_betas(self.betas)


def build(model: nn.Module, config: LionConfig) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """lion_pytorch.Lion over the trainable parameters."""
    from lion_pytorch import Lion

    return Lion(decay_groups(model, config.weight_decay), lr=config.lr, betas=config.betas), ()


def memory(profile: ArchitectureProfile, config: LionConfig) -> MemoryTerms:
    """One momentum per trainable parameter, in its own format."""
    return MemoryTerms(optimizer_copies=1)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[LionConfig]]:
    yield OptimizerMethod(
        name="lion",
        summary="Steps by the sign of a momentum: half of AdamW's state.",
        config=LionConfig,
        claims=frozenset({"optimizer.step"}),
        packages=("lion-pytorch>=0.2",),
        build=build,
        memory=memory,
        reference="Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675",
    )
