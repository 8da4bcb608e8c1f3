"""Optimizers stepped on gradients that are drawn instead of computed, so that a reference can have the very same ones.

Twenty-four steps with the warm-up and cosine of `stepping`, without clipping. A rule is a step of one parameter in float64:
`rule(name, parameter, gradient, state, rate, step, decay) -> parameter`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.schedule import build_schedule

from .stepping import STEPS, factor

SCHEDULE: dict[str, Any] = {"schedule": "cosine", "warmup": 4, "min_lr_ratio": 0.1}

Rule = Callable[[str, Tensor, Tensor, dict[str, Any], float, int, float], Tensor]


def gradient(name: str, shape: Any, step: int) -> Tensor:
    """Normal numbers of very different sizes by row, the same for the same name, shape and step."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
    values = torch.randn(tuple(shape), dtype=torch.float64, generator=draw)
    if len(tuple(shape)) > 1:
        values *= torch.logspace(-2, 1, values.shape[-2], dtype=torch.float64).unsqueeze(-1)
    return values


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def step_once(parameters: Mapping[str, nn.Parameter], optimizer: Any, step: int) -> None:
    """One step on the gradients of `step` for those that require one."""
    for name, parameter in parameters.items():
        parameter.grad = gradient(name, parameter.shape, step).to(parameter.dtype) if parameter.requires_grad else None
    optimizer.step()
    optimizer.zero_grad()


def stepped(
    model: nn.Module, optimizer: Any, options: Any, parameters: Mapping[str, nn.Parameter], steps: int = STEPS
) -> dict[str, Tensor]:
    """Where these parameters are after so many steps, scheduled by the options."""
    scheduler = build_schedule(optimizer, options, STEPS)
    for step in range(steps):
        step_once(parameters, optimizer, step)
        scheduler.step()
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def written_out(rule: Rule, start: Mapping[str, Tensor], lr: float, weight_decay: float) -> dict[str, Tensor]:
    """The same by a rule from a paper, with decay on matrices only."""
    places = {name: tensor.detach().double().clone() for name, tensor in start.items()}
    states: dict[str, dict[str, Any]] = {name: {} for name in places}
    for step in range(STEPS):
        for name, place in places.items():
            decay = weight_decay if place.ndim >= 2 else 0.0
            drawn = gradient(name, place.shape, step)
            places[name] = rule(name, place, drawn, states[name], lr * factor(step), step + 1, decay)
    return places


def difference(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """The greatest difference of any number, in units of the greatest movement of its tensor since the start."""
    assert got.keys() == expected.keys()
    worst = 0.0
    for name, one in expected.items():
        moved = float((one.double() - start[name].double()).abs().max())
        assert moved > 0, f"{name} did not move"
        worst = max(worst, float((got[name].double() - one.double()).abs().max()) / moved)
    return worst
