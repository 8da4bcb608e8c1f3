"""`adafactor`: second moments kept as one number per row and per column, transformers' own (arXiv:1804.04235).

transformers' rather than torch's, because there `lr` can be the size of a step, as in every other optimizer here.
torch.optim.Adafactor always multiplies it by the size of the weights, so that an update that starts at zero, as LoRA's does,
hardly moves; and it caps it at one over the root of the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, Matrix, MemoryTerms, OptimizerMethod, StateSize
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import decay_groups
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.schedule import OptimizerOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class AdafactorConfig(OptimizerOptions):
    """Options of `adafactor`, with those of every optimizer."""

    decay_rate: float = option(
        -0.8,
        "The mean of squares at step t forgets with 1 - t^decay_rate: a short memory first, then an ever longer one.",
        lt=0,
    )
    eps: tuple[float, float] = option(
        (1e-30, 1e-3), "Added to the squared gradient; and, with `scale_parameter`, the least size of a tensor."
    )
    clip_threshold: float = option(
        1.0, "The update of a tensor is scaled down to this root mean square, besides `max_grad_norm`.", gt=0
    )
    scale_parameter: bool = option(
        False, "Multiply the rate by the root mean square of the tensor, as the paper does: `lr` is then relative."
    )
    weight_decay: float = option(0.0, "Decoupled weight decay on matrices; norms and biases are never decayed.", ge=0)

    def __post_init__(self) -> None:
        if min(self.eps) <= 0:
            raise ValueError(f"eps must be two numbers greater than 0, got {list(self.eps)}")


def build(model: nn.Module, config: AdafactorConfig) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """transformers' Adafactor over the trainable parameters, at the rate of the schedule and never at one of its own.

    Without its `beta1`: that is a mean of steps as they were taken, so that a step would go by the rates of before.
    """
    from transformers.optimization import Adafactor

    optimizer = Adafactor(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        eps=config.eps,
        clip_threshold=config.clip_threshold,
        decay_rate=config.decay_rate,
        beta1=None,
        scale_parameter=config.scale_parameter,
        relative_step=False,
        warmup_init=False,
    )
    return optimizer, ()


def memory(profile: ArchitectureProfile, config: AdafactorConfig) -> MemoryTerms:
    """float32, whatever the parameter: one number per row and per column of a matrix, one per number of a vector."""

    def state(matrix: Matrix) -> StateSize:
        *rows, columns = matrix.shape or (1,)
        squares = math.prod(rows) + math.prod(rows[:-1]) * columns if rows else columns
        # The last 4 bytes are the tensor's size, which it remembers.
        return StateSize(bytes=4 * squares + 4)

    return MemoryTerms(optimizer_bytes=4, optimizer_state=state)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[AdafactorConfig]]:
    yield OptimizerMethod(
        name="adafactor",
        summary="Adam's scaling from row and column means: next to no state.",
        config=AdafactorConfig,
        claims=frozenset({"optimizer.step"}),
        build=build,
        memory=memory,
        reference="Shazeer and Stern 2018, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, arXiv:1804.04235",
    )
