"""Muon and AdamW as one torch optimizer: a parameter group says which of the two moves its parameters.

    "muon"    momentum -> orthogonalise -> scaled by the shape; decoupled weight decay
    "adamw"   torch's own AdamW

One optimizer, so that schedule, clipping and checkpoints treat it like any other. State is tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from luthier.core.contracts import NothingPatched
from luthier.core.optimizing import decay_groups, role_finder, trained_parameters
from luthier.core.profile import ArchitectureProfile, RoleGroup
from luthier.plugins.muon.orthogonal import orthogonalise

if TYPE_CHECKING:
    from torch import nn

    from luthier.plugins.muon import MuonConfig


def muon(model: nn.Module, config: MuonConfig, profile: ArchitectureProfile) -> Muon:
    """Over the parameters that train; its hidden matrices are made orthogonal. Raises NothingPatched where it has none."""
    from luthier.plugins.muon import is_hidden

    find = role_finder(profile)
    matrices: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    found: set[int] = set()
    for name, parameter in trained_parameters(model).items():
        place = find(name, parameter.shape)
        if place and is_hidden(*place) and place[1].shape == tuple(parameter.shape):
            matrices[is_transposed(place[1])].append(parameter)
            found.add(id(parameter))
    if not found:
        raise NothingPatched("muon: no hidden matrix trains, so there is nothing to make orthogonal; take adamw")
    orthogonal = [
        {
            "params": parameters,
            "method": "muon",
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "momentum": config.momentum,
            "nesterov": config.nesterov,
            "ns_steps": config.ns_steps,
            "adjust": config.adjust,
            "transposed": transposed,
        }
        for transposed, parameters in matrices.items()
        if parameters
    ]
    rest = []
    for decayed in decay_groups(model, config.weight_decay):
        parameters = [parameter for parameter in decayed["params"] if id(parameter) not in found]
        own = {"method": "adamw", "lr": config.adamw_lr or config.lr, "betas": config.betas, "eps": config.eps}
        rest += [{**decayed, **own, "params": parameters}] if parameters else []
    return Muon([*orthogonal, *rest], {"lr": config.lr})


def is_transposed(group: RoleGroup) -> bool:
    """Whether the weight lies as (inputs, outputs), as in Conv1D and some fused experts."""
    rows, columns = group.shape[-2:]
    return rows != columns and (rows, columns) == (group.in_features, group.out_features)


class Muon(Optimizer):
    """Groups with "method" "muon" hold parameters of (A, B), or of (n, A, B) for n matrices; those of "adamw" any."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; a parameter without a gradient is left alone, and so is a matrix of a fused tensor whose own is zero."""
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                if group["method"] == "adamw":
                    self._step_adamw(group, parameters)
                    continue
                for parameter in parameters:
                    self._step_muon(group, parameter)
        return loss

    def _step_muon(self, group: dict[str, Any], parameter: Tensor) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        # An expert that saw no token has a gradient of zeros. Its momentum must not fade: what is left of it would still
        # be made a step of full size.
        seen = gradient.flatten(1).any(dim=1).view(-1, 1, 1) if parameter.ndim == 3 else None
        assign(momentum, momentum.lerp(gradient, 1 - group["momentum"]), seen)
        ahead = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        direction = orthogonalise(ahead, group["ns_steps"])
        size = group["lr"] * step_size(parameter.shape, group["adjust"], transposed=group["transposed"])
        assign(parameter, (parameter * (1 - group["lr"] * group["weight_decay"])).add_(direction, alpha=-size), seen)

    def _step_adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def assign(target: Tensor, values: Tensor, where: Tensor | None) -> None:
    """Copies `values` into `target`, in place; with `where` only there."""
    target.copy_(values if where is None else torch.where(where, values, target))


def step_size(shape: torch.Size, adjust: str, *, transposed: bool) -> float:
    """Factor on the rate for one matrix of this shape."""
    outputs, inputs = reversed(shape[-2:]) if transposed else shape[-2:]
    if adjust == "original":
        return math.sqrt(max(1.0, outputs / inputs))
    return 0.2 * math.sqrt(max(outputs, inputs))
