"""The size of a tuner, from PEFT itself: the target modules alone, as a tree on the meta device, with the tuner on them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import peft
import torch
from torch import nn

from luthier.core.contracts import Matrix
from luthier.core.targets import Target
from luthier.plugins._peft.layers import shortest_targets
from luthier.plugins.peft.tuners import TUNERS
from luthier.plugins.peft.typed import config_class

if TYPE_CHECKING:
    from torch import Tensor

Measured = tuple[tuple[Matrix, ...], int]
INDEX_BYTES = 8


def measure(tuner: str, options: Mapping[str, Any], targets: Iterable[Target], names: Collection[str]) -> Measured:
    """(trained tensors by role and shape, bytes of the frozen tensors that the tuner adds) on these modules.

    `names` are those of all modules of the model. Raises what PEFT raises where it does not take the options or the sizes.
    """
    chosen = list(targets)
    if not TUNERS[tuner].counted:
        return FORMULAS[tuner](options, chosen)
    kwargs = dict(options) | tuner_targets(tuner, target_names(chosen, names), chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            adapted = peft.get_peft_model(_tree(chosen), config_class(tuner)(**kwargs))
    roles = {target.name: target.role for target in chosen}
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    frozen = 0
    for name, tensor in _tensors(adapted):
        if tensor.requires_grad:
            key = _role(name, roles), tuple(tensor.shape)
            counts[key] = counts.get(key, 0) + 1
        elif ".base_layer." not in name:
            frozen += tensor.numel() * tensor.element_size()
    return tuple(Matrix(role=role, shape=shape, count=count) for (role, shape), count in counts.items()), frozen


def target_names(targets: Collection[Target], names: Collection[str]) -> list[str]:
    """How PEFT is told the targets, in order: by the last part of a name where it means nothing else, and one role.

    It is no mere shorthand: Lily shares its matrices among the modules that one word means.
    """
    full = [target.name for target in targets]
    if set(shortest_targets(full, names)) & set(full):
        return full
    downs = {target.name.rpartition(".")[2] for target in targets if target.role == "mlp.down"}
    others = {target.name.rpartition(".")[2] for target in targets if target.role != "mlp.down"}
    return full if downs & others else [name.rpartition(".")[2] for name in full]


def tuner_targets(tuner: str, names: list[str], targets: Iterable[Target]) -> dict[str, Any]:
    """PEFT's options that say what to adapt; `names` stand for the targets in order, in the form that PEFT is to save."""
    chosen = list(targets)
    fields = config_class(tuner).__dataclass_fields__
    options: dict[str, Any] = {"target_modules": sorted(set(names))}
    if "feedforward_modules" in fields:
        # (IA)3 scales what goes into the last matrix of the MLP, and what comes out of all others.
        scaled = {name for name, target in zip(names, chosen, strict=True) if target.role == "mlp.down"}
        options["feedforward_modules"] = sorted(scaled)
    if "fan_in_fan_out" in fields:
        options["fan_in_fan_out"] = any(target.group.kind == "conv1d" for target in chosen)
    return options


def _tree(targets: list[Target]) -> nn.Module:
    root = nn.Module()
    for target in targets:
        *path, leaf = target.name.split(".")
        place = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(leaf, _module(target))
    return root


def _module(target: Target) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    group = target.group
    inputs, outputs = group.in_features or 0, group.out_features or 0
    if group.kind == "conv1d":
        return Conv1D(outputs, inputs)
    if group.kind == "linear":
        return nn.Linear(inputs, outputs, bias=group.bias)
    return nn.LayerNorm(group.shape, bias=group.bias)


def _tensors(adapted: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from adapted.named_parameters()
    yield from adapted.named_buffers()


def _role(name: str, roles: Mapping[str, str]) -> str:
    """That of the module that a tensor belongs to; "other" for one that several share."""
    owner = name.removeprefix("base_model.model.")
    while owner:
        owner = owner.rpartition(".")[0]
        if owner in roles:
            return roles[owner]
    return "other"


# ---- tuners that draw their random indices with operations that the meta device does not have


def _shira(options: Mapping[str, Any], targets: list[Target]) -> Measured:
    """r (in + out) entries of each matrix train; the place of each is kept as two 32-bit numbers."""
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for target in targets:
        inputs, outputs = target.group.in_features or 0, target.group.out_features or 0
        trained = int(options.get("r", 32)) * (inputs + outputs)
        if not 0 < trained <= inputs * outputs:
            raise ValueError(f"{trained} entries of {target.name} would train, and it has {inputs * outputs}")
        counts[target.role, (trained,)] = counts.get((target.role, (trained,)), 0) + 1
    matrices = tuple(Matrix(role=role, shape=shape, count=count) for (role, shape), count in counts.items())
    return matrices, sum(matrix.size * matrix.count for matrix in matrices) * INDEX_BYTES


def _unilora(options: Mapping[str, Any], targets: list[Target]) -> Measured:
    """One vector for all; each entry of the low-rank matrices has its place in it, and a factor of 4 bytes."""
    length, rank = int(options.get("theta_d_length", 256)), int(options.get("r", 4))
    if length < 1 or rank < 1:
        raise ValueError("theta_d_length and r have to be positive")
    entries = sum(rank * ((target.group.in_features or 0) + (target.group.out_features or 0)) for target in targets)
    return (Matrix(role="other", shape=(length,)),), entries * (INDEX_BYTES + 4)


FORMULAS = {"shira": _shira, "unilora": _unilora}
