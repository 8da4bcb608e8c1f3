"""An optimizer stepped as the trainer does it, beside the same steps written out from a paper in float64.

Twenty-four steps on a small model with two matrices, a norm and biases; another batch each time; warm-up and cosine;
clipping that is in force. A rule is one step of one parameter: `rule(parameter, gradient, state, rate, step, decay)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.schedule import build_schedule

STEPS = 24
WARMUP = 4
FLOOR = 0.1
CLIP = 0.5
COMMON: dict[str, Any] = {"schedule": "cosine", "warmup": WARMUP, "min_lr_ratio": FLOOR, "max_grad_norm": CLIP}

Rule = Callable[[Tensor, Tensor, dict[str, Any], float, int, float], Tensor]


def small_model(dtype: torch.dtype = torch.float64, width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.Linear(width, 4)).to(dtype)


def loss_of(model: nn.Module, step: int) -> Tensor:
    """Of a batch of its own for each step."""
    draw = torch.Generator().manual_seed(step)
    inputs, wanted = (torch.randn(32, size, dtype=torch.float64, generator=draw) for size in (8, 4))
    dtype = next(model.parameters()).dtype
    return (model(inputs.to(dtype)) - wanted.to(dtype)).pow(2).mean()


def stepped(model: nn.Module, optimizer: Any, options: Any, steps: int = STEPS) -> list[Tensor]:
    """The parameters after these steps, scheduled and clipped by the options."""
    scheduler = build_schedule(optimizer, options, steps)
    for step in range(steps):
        loss_of(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def written_out(rule: Rule, lr: float, weight_decay: float, model: nn.Module | None = None) -> list[Tensor]:
    """The same with schedule and clipping by hand, and decay on matrices only."""
    model = model or small_model()
    parameters = list(model.parameters())
    states: list[dict[str, Any]] = [{} for _ in parameters]
    clipped = 0
    for step in range(STEPS):
        gradients = torch.autograd.grad(loss_of(model, step), parameters)
        norm = math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in gradients))
        # torch adds 1e-6 to the norm it divides by.
        scale = min(1.0, CLIP / (norm + 1e-6))
        clipped += scale < 1
        rate = lr * factor(step)
        with torch.no_grad():
            for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
                decay = weight_decay if parameter.ndim >= 2 else 0.0
                parameter.copy_(rule(parameter, gradient * scale, state, rate, step + 1, decay))
    assert clipped, "the test has to clip"
    return [parameter.detach() for parameter in parameters]


def factor(step: int) -> float:
    """Warm-up, then cosine to the floor."""
    if step < WARMUP:
        return (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2


def difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """The greatest difference of any number, in units of the greatest movement since the start."""
    start = [parameter.detach() for parameter in small_model().parameters()]
    moved = max(float((one - old).abs().max()) for one, old in zip(expected, start, strict=True))
    assert moved > 0
    return max(float((one - two).abs().max()) for one, two in zip(got, expected, strict=True)) / moved
