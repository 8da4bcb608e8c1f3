"""What optimizers share beside the schedule: Adam's options, and the parameters that train, told apart for weight decay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile, RoleGroup
from luthier.core.schedule import OptimizerOptions

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class AdamOptions(OptimizerOptions):
    """Options of optimizers of Adam's family, with those of every optimizer."""

    betas: tuple[float, float] = option((0.9, 0.999), "Decay of the running mean and of the running square of the gradient.")
    eps: float = option(1e-8, "Added to the root of the running square.", gt=0)
    weight_decay: float = option(0.0, "Decoupled weight decay on matrices; norms and biases are never decayed.", ge=0)

    def __post_init__(self) -> None:
        check_betas(self.betas)


def check_betas(betas: tuple[float, ...]) -> None:
    """Raises ValueError for a decay rate outside [0, 1)."""
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must lie in [0, 1), got {list(betas)}")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; a tied one once, under its first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """torch parameter groups over what trains: matrices (2 or more dimensions) with decay, vectors without; none empty."""
    trained = list(trained_parameters(model).values())
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def fusible(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether torch's fused kernels take every parameter of these groups: floating point, on CPU or CUDA."""
    trained = [parameter for group in groups for parameter in group["params"]]
    return all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in trained)


def role_finder(profile: ArchitectureProfile) -> Callable[[str, Sequence[int]], tuple[str, RoleGroup] | None]:
    """A function from a parameter's name and shape to its role and group; None for what has no role, as a low-rank factor.

    Names as the model has them, with or without PEFT's wrapping. A decoder layer that a method added counts like the others
    of its form: layer numbers are not looked at, where several forms share a name the shape decides.
    """
    places: dict[str, list[tuple[str, RoleGroup]]] = {}
    for role, groups in profile.roles.items():
        for group in groups:
            places.setdefault(_numberless(group.pattern), []).append((role, group))

    def find(name: str, shape: Sequence[int]) -> tuple[str, RoleGroup] | None:
        plain = _numberless(_unwrapped(name))
        found = places.get(plain) or places.get(plain.rpartition(".")[0]) or []
        return next((place for place in found if place[1].shape == tuple(shape)), found[0] if found else None)

    return find


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _unwrapped(name: str) -> str:
    """Without what PEFT puts around a module's name: `base_model.model.`, `.base_layer`, `.modules_to_save.default`."""
    return re.sub(r"\.modules_to_save\.[^.]+|\.base_layer", "", name.removeprefix("base_model.model."))
