"""Adam-mini's step: AdamW, with the mean of the squared gradient over a block in place of the square of each number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from luthier.plugins.adam_mini.partition import Partition


class AdamMini(Optimizer):
    """Per block b of a parameter, with gradient g and t counted from 1:

        m = b1 m + (1 - b1) g                   like the parameter
        v = b2 v + (1 - b2) mean(g^2 over b)    one number, float32 at the least
        p = p - lr wd p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    `partitions` says for every parameter how it falls into blocks. A parameter without gradient is left alone.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        partitions: Mapping[nn.Parameter, Partition],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._partitions = partitions

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` returned, if there was one."""
        loss = closure() if closure is not None else None
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: nn.Parameter, grad: Tensor, group: Mapping[str, Any]) -> None:
        partition, state = self._partitions[parameter], self.state[parameter]
        squares = _block_means(grad, partition)
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(squares)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).add_(squares, alpha=1 - beta2)
        deviation = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        rate = deviation.reciprocal_().mul_(group["lr"] / (1 - beta1 ** state["step"]))
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(state["exp_avg"] * _spread(rate, partition, parameter))


def _block_means(grad: Tensor, partition: Partition) -> Tensor:
    """Mean of the squared gradient of every block, (lead..., blocks)."""
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    wide = wide.reshape(1) if grad.ndim == 0 else wide
    averaged = [dimension for dimension in range(wide.ndim) if dimension not in partition.kept]
    rows = wide.square().mean(dim=averaged) if averaged else wide.square()
    return rows.unflatten(-1, (-1, partition.size)).mean(-1) if partition.size > 1 else rows


def _spread(rate: Tensor, partition: Partition, like: Tensor) -> Tensor:
    """The number of every block where its members are, in a shape that broadcasts against `like`."""
    rate = rate.repeat_interleave(partition.size, dim=-1) if partition.size > 1 else rate
    if like.ndim == 0:
        return rate.reshape(())
    return rate.reshape([size if dimension in partition.kept else 1 for dimension, size in enumerate(like.shape)])
