"""Learning-rate schedules and gradient clipping: options that every optimizer shares by extending one dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.options import option

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Schedule = Literal["linear", "cosine", "constant", "wsd"]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Options that the core applies for the optimizer: rate, schedule, warm-up, clipping."""

    lr: float = option(2e-4, "Peak learning rate.", gt=0)
    schedule: Schedule = option(
        "linear",
        "Learning rate after the warm-up: `linear` or `cosine` decay to `min_lr_ratio`, `constant`, or `wsd` (warm-up, "
        "stable, decay: constant until the last `decay` part, then linear to `min_lr_ratio`; Hu et al. 2024, "
        "arXiv:2404.06395).",
    )
    warmup: float = option(
        0.03, "Warm-up from zero: a part of all steps below 1, a number of steps from 1 on.", unit="part or steps", ge=0
    )
    decay: float = option(0.2, "With `wsd`: the last part of all steps, in which the rate falls.", unit="part", gt=0, le=1)
    min_lr_ratio: float = option(0.0, "The rate at the end, as a part of `lr`.", ge=0, lt=1)
    max_grad_norm: float = option(
        1.0, "Gradients are scaled down to this global norm before each step; 0 switches clipping off.", ge=0
    )


def warmup_steps(options: OptimizerOptions, steps: int) -> int:
    """The warm-up in steps: rounded up, so that a warm-up that was asked for is at least one step."""
    if options.warmup >= 1:
        return min(math.ceil(options.warmup), steps)
    # 0.07 x 100 is 7.000000000000001 in binary, which nobody means as a wish for an eighth step.
    return min(math.ceil(round(options.warmup * steps, 6)), steps)


def clipped_warmup(options: object, steps: int) -> str | None:
    """What to tell the user where the warm-up is longer than the run, so that the peak rate is never reached; else None."""
    if not isinstance(options, OptimizerOptions) or options.warmup <= max(steps, 1):
        return None
    peak = options.lr * steps / (steps + 1)
    return (
        f"optimizer.warmup asks for {math.ceil(options.warmup)} steps and the run has {steps}: the whole run is warm-up, up "
        f"to a rate of {peak:.2e} where {options.lr:.2e} was asked for"
    )


def learning_rate_factor(step: int, options: OptimizerOptions, steps: int) -> float:
    """The factor on `lr` for optimizer step `step` (counted from 0) of `steps`.

    The rate rises linearly over the warm-up, so that its first step already moves, and reaches `min_lr_ratio` at the
    end of the last step.
    """
    warmup = warmup_steps(options, steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    floor = options.min_lr_ratio
    if options.schedule == "constant":
        return 1.0
    start = warmup if options.schedule != "wsd" else max(warmup, steps - max(1, round(options.decay * steps)))
    if step < start or steps <= start:
        return 1.0
    progress = min((step - start) / (steps - start), 1.0)
    if options.schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor + (1 - floor) * (1 - progress)


def build_schedule(optimizer: Optimizer, options: object, steps: int) -> LRScheduler:
    """A torch scheduler over the optimizer's own rates; constant where `options` is no `OptimizerOptions`."""
    from torch.optim.lr_scheduler import LambdaLR

    if not isinstance(options, OptimizerOptions):
        return LambdaLR(optimizer, lambda step: 1.0)
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, options, steps))
