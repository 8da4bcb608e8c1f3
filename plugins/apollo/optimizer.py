"""APOLLO's step: the raw gradient, scaled along its longer side by what Adam does to a random projection of it.

For a matrix with gradient G (m x n), m the shorter side, and t counted from 1:

    R = P G,  P (r x m) with entries N(0, 1/r), drawn anew every `update_proj_gap` steps from a stored seed
    M = b1 M + (1 - b1) R        V = b2 V + (1 - b2) R^2        R~ = M / (sqrt(V) + eps)
    s = |R~[:, j]| / |R[:, j]| for every column j, or |R~| / |R| for all
    U = G s, shrunk where its norm is more than 1.01 times the norm of the last U (norm-growth limiter)
    W = W - lr wd W - lr sqrt(scale) sqrt(1 - b2^t) / (1 - b1^t) U

The moments are Adam's own in the small space, and P itself is not kept: 2 r n + 1 numbers a matrix (the paper's table 1).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from luthier.core.optimizing import fusible

GROWTH: Final = 1.01  # the paper's gamma


class Apollo(torch.optim.AdamW):
    """torch's AdamW, but for groups with a `rank`, whose matrices take APOLLO's step.

    A weight of three dimensions is a stack of matrices, each with its own projection, factors and limiter. Moments are
    float32 at the least. The seed of the projection lies in the state, so that a resumed run projects as before.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, seed: int, **options: Any) -> None:
        listed = list(groups)
        for group in listed:
            group["fused"] = "rank" not in group and fusible([group])
        super().__init__(listed, **options)
        projected = [parameter for group in self.param_groups if "rank" in group for parameter in group["params"]]
        self._first_seeds = {parameter: _seed(f"{seed} {number}") for number, parameter in enumerate(projected)}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` returned, if there was one. A parameter without gradient is left alone."""
        loss = closure() if closure is not None else None
        taken: dict[nn.Parameter, Tensor] = {}
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"] if "rank" in group else ():
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad, group)
                        taken[parameter] = parameter.grad
                        parameter.grad = None  # AdamW passes it over
        super().step()
        for parameter, grad in taken.items():
            parameter.grad = grad
        return loss

    def _move(self, parameter: nn.Parameter, grad: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        if not state:
            # AdamW, which loads this state too, wants its step as a tensor.
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["seed"] = self._first_seeds[parameter]
        elif int(state["step"]) % group["update_proj_gap"] == 0:
            state["seed"] = _seed(str(state["seed"]))
        left = wide.shape[-2] < wide.shape[-1]
        low = project(wide, group["rank"], state["seed"], left=left)
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(low), torch.zeros_like(low)
            state["norm"] = wide.new_zeros((*wide.shape[:-2], 1, 1))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(low, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(low, low, value=1 - beta2)
        direction = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(group["eps"])
        along = (-1, -2) if group["scale_type"] == "tensor" else (-2 if left else -1,)
        update = wide * _ratio(norm(direction, along), norm(low, along))
        update, state["norm"] = limit_growth(update, state["norm"])
        taken = float(state["step"])
        rate = group["lr"] * math.sqrt(1 - beta2**taken) / (1 - beta1**taken)
        scale = group["scale"] if group["scale"] is not None else min(wide.shape[-2:]) / group["rank"]
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(update.mul_(rate * math.sqrt(scale)))


def _seed(text: str) -> int:
    """A seed for torch's generators, the same for the same text on every machine."""
    return random.Random(text).getrandbits(63)  # noqa: S311


def project(grad: Tensor, rank: int, seed: int, *, left: bool) -> Tensor:
    """The gradient with its rows (left) or columns projected to `rank` of them; each matrix of a stack by its own matrix."""
    generator = torch.Generator(device=grad.device).manual_seed(seed)
    rows, columns = grad.shape[-2:]
    shape = (rows, rank) if left else (rank, columns)
    matrix = torch.randn((*grad.shape[:-2], *shape), generator=generator, device=grad.device, dtype=grad.dtype)
    matrix /= math.sqrt(rank)
    return matrix.mT @ grad if left else grad @ matrix.mT


def norm(values: Tensor, along: tuple[int, ...]) -> Tensor:
    """Euclidean norm, the dimensions kept."""
    return torch.linalg.vector_norm(values, dim=along, keepdim=True)


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """Zero where there is no gradient: its factor would be a number without meaning."""
    return torch.where(under > 0, over / under, torch.zeros_like(over))


def limit_growth(update: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The update with its norm at most 1.01 times the `last` one, and its norm.

    A matrix whose gradient was zero, as an expert's that got no token, keeps the norm from before: measured against zero,
    its next update would be cut to nothing. The first is not limited.
    """
    now = norm(update, (-1, -2))
    excess = torch.where(last > 0, (now / (last * GROWTH)).clamp_min(1.0), torch.ones_like(now))
    return update / excess, torch.where(now > 0, now / excess, last)
