"""galore-torch's own optimizers, with their state as tensors: what `backend: galore-torch` builds.

The steps are the library's. What its state lacks for a run that is saved and goes on, this adds:

- its projector is a Python object, which no checkpoint takes: in a `state_dict` it is a tensor
- the projector is a slice that keeps the whole factor of the decomposition alive: here it has memory of its own
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from galore_torch import GaLoreAdamW, GaLoreAdamW8bit
from galore_torch.galore_projector import GaLoreProjector
from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from luthier.plugins.galore import GaloreConfig


class Projector(GaLoreProjector):
    """The library's, but what it keeps has memory of its own."""

    def get_orthogonal_matrix(self, weights: Tensor, rank: int, type: str) -> Tensor:
        found: Tensor = super().get_orthogonal_matrix(weights, rank, type)
        return found.clone(memory_format=torch.contiguous_format)


class TensorState(Optimizer):
    """Before an optimizer of the library: `projector` is an object in `state`, and a tensor in a `state_dict`."""

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        self._seed_projectors()

    def _seed_projectors(self) -> None:
        """The library makes its own where there is none yet."""
        for group in self.param_groups:
            for weight in group["params"] if "rank" in group else ():
                self.state[weight].setdefault("projector", _projector(group))

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        saved["state"] = {number: _as_tensors(state) for number, state in saved["state"].items()}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        plain = {number: _without_projector(state) for number, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": plain}, *args, **kwargs)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        weights = [(weight, group) for group in self.param_groups for weight in group["params"]]
        for number, (weight, group) in zip(numbers, weights, strict=True):
            saved = state_dict["state"].get(number, {})
            if "projector" in saved:
                self.state[weight]["projector"] = _projector(group, saved["projector"].to(weight.device, copy=True))
        self._seed_projectors()


class LibraryAdamW(TensorState, GaLoreAdamW):
    """galore-torch's AdamW."""


class LibraryAdamW8bit(TensorState, GaLoreAdamW8bit):
    """galore-torch's AdamW with bitsandbytes' 8-bit moments."""

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Asked by bitsandbytes for each parameter and step.

        The library passes two options by position that bitsandbytes no longer has; they arrive as the two here.
        """
        return {**super().get_config(gindex, pindex, group), "max_unorm": 0.0, "skip_zeros": False}


def build_library(groups: list[dict[str, Any]], config: GaloreConfig) -> Optimizer:
    """Over groups with or without `rank`, `update_proj_gap`, `scale` and `proj_type`."""
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.bits == 8:
        return LibraryAdamW8bit(groups, **options)
    return LibraryAdamW(groups, **options, no_deprecation_warning=True)


def _projector(group: dict[str, Any], basis: Tensor | None = None) -> Projector:
    made = Projector(
        group["rank"], update_proj_gap=group["update_proj_gap"], scale=group["scale"], proj_type=group["proj_type"]
    )
    made.ortho_matrix = basis
    return made


def _as_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """The projector as the tensor it holds; left out before the first step, when it holds none."""
    plain = _without_projector(state)
    projector = state.get("projector")
    return plain if projector is None or projector.ortho_matrix is None else {**plain, "projector": projector.ortho_matrix}


def _without_projector(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "projector"}
