"""AdamW whose gradients and moments are projected for some weights: GaLore (Zhao et al. 2024, arXiv:2403.03507).

For a projected weight W with gradient G, at each step t, counted from 0:

    every `refresh` steps     P <- the first r singular vectors of G
    R = P^T G                 M, V <- Adam's moments of R
    N = sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1))  M / (sqrt(V) + eps)
    W <- (W - lr scale P N) (1 - lr weight_decay)

The place of eps and of the decay is that of galore-torch's AdamW, which has them from transformers' former AdamW, and it is
the same for the weights that are not projected. torch's AdamW adds eps after the bias correction and decays first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from luthier.core.optimizing import fusible
from luthier.plugins.galore.projection import add_back_, find_projector, project
from luthier.plugins.galore.shapes import is_left


class GaLoreAdamW(Optimizer):
    """Groups with a `rank` are projected and have besides `refresh`, `scale`, `proj_type` and `svd`; other groups are AdamW.

    The state of a parameter is `step` (a number), `exp_avg`, `exp_avg_sq`, and for a projected one `projector`: tensors and
    numbers, as a checkpoint takes them. That of a projected weight is float32 beside narrower weights too.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._places = {weight: place for place, weight in enumerate(w for g in self.param_groups for w in g["params"])}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` returned, if there was one. A parameter without gradient is left alone."""
        loss = closure() if closure is not None else None
        with torch.no_grad():
            for group in self.param_groups:
                move = _move_projected if "rank" in group else _move_plain
                for step, weights, gradients in self._in_step(group):
                    states = [self.state[weight] for weight in weights]
                    move(weights, gradients, states, group, step)
                    for state in states:
                        state["step"] = step
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps the format it was saved in, where torch casts it to that of its parameter."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, weight in zip(numbers, weights, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[weight][key].dtype:
                    self.state[weight][key] = value.to(weight.device, copy=True)

    def _in_step(self, group: dict[str, Any]) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
        """(number of the step from 1, weights, gradients to take it with), for the weights that have made as many steps."""
        alike: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for weight in group["params"]:
            gradient = self._gradient(weight, group)
            if gradient is not None:
                weights, gradients = alike.setdefault(self.state[weight].get("step", 0) + 1, ([], []))
                weights.append(weight)
                gradients.append(gradient)
        for step, (weights, gradients) in alike.items():
            yield step, weights, gradients

    def _gradient(self, weight: Tensor, group: dict[str, Any]) -> Tensor | None:
        """What the step is taken with: projected where the group is; None where there is no gradient."""
        if weight.grad is None or "rank" not in group:
            return weight.grad
        return self._projected(weight, weight.grad, group)

    def _projected(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], *, refresh: bool = True) -> Tensor:
        """The gradient in the small space, which is chosen anew where that is due; not if `refresh` is false."""
        state = self.state[weight]
        step = state.setdefault("step", 0)
        if refresh and step % group["refresh"] == 0:
            _renew(state, gradient, group, seed=self._places[weight] * 1_000_003 + step)
        return project(gradient, state["projector"], left=_is_left(weight, group))


def _is_left(weight: Tensor, group: dict[str, Any]) -> bool:
    return is_left(tuple(weight.shape), group["proj_type"])


def _renew(state: dict[str, Any], gradient: Tensor, group: dict[str, Any], *, seed: int) -> None:
    """A new projector in the state of a weight; a matrix of a stack whose gradient is all zero keeps its old one."""
    new = find_projector(gradient, group["rank"], left=_is_left(gradient, group), svd=group["svd"], seed=seed)
    if gradient.ndim == 3 and "projector" in state:
        # An expert that saw no token in this step has no directions to offer.
        seen = gradient.flatten(1).any(dim=1)[:, None, None]
        new = torch.where(seen, new, state["projector"])
    state["projector"] = new


def _move_projected(
    weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any], step: int
) -> None:
    # Adam's step from zero, at a rate of 1, is minus the direction N.
    moves = [torch.zeros_like(gradient) for gradient in gradients]
    _adam_(moves, gradients, states, group, step, lr=1.0)
    keep = 1 - group["lr"] * group["weight_decay"]
    alpha = group["lr"] * group["scale"] * keep
    for weight, move, state in zip(weights, moves, states, strict=True):
        add_back_(weight, move, state["projector"], left=_is_left(weight, group), alpha=alpha, beta=keep)


def _move_plain(
    weights: list[Tensor], gradients: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any], step: int
) -> None:
    _adam_(weights, gradients, states, group, step, lr=group["lr"])
    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])


def _adam_(
    targets: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    step: int,
    *,
    lr: float,
) -> None:
    """Adam's step on all `targets` in one kernel; moments are made at the first, in the format of the gradient."""
    for state, gradient in zip(states, gradients, strict=True):
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    beta1, beta2 = group["betas"]
    # The kernel counts in tensors; made on the device, they cost no transfer and no wait.
    counters = torch.full((len(targets),), float(step - 1), device=targets[0].device).unbind()
    adamw(
        targets,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        list(counters),
        fused=fusible([{"params": targets}]),
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=0.0,
        # Divided: torch adds it after the bias correction of the root, galore-torch before.
        eps=group["eps"] / math.sqrt(1 - beta2**step),
        maximize=False,
    )
