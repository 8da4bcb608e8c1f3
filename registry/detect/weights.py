"""Every matrix and every norm of a model as one flat list, whatever the module that holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.profile import ModuleKind
from luthier.registry.detect.vocabulary import NORM_CLASS, WRAPPERS

if TYPE_CHECKING:
    from torch import nn


@dataclass(eq=False)
class Weight:
    """One matrix (or norm) and what detection has found out about it so far.

    `path` is what a profile names: the module, or the parameter itself for kind "parameter". `module` is the module's path.
    `block` is the path of the attention, MLP, ... that it belongs to, and `part` its place in it ("q", "down").
    """

    path: str
    module: str
    kind: ModuleKind
    shape: tuple[int, ...]
    in_features: int | None = None
    out_features: int | None = None
    bias: bool = False
    tensors: tuple[Any, ...] = ()
    layer: int | None = None
    context: str = ""
    block: str = ""
    part: str = ""
    role: str = ""
    why: str = ""

    def local_name(self, block: str = "") -> str:
        """The last part of the path within its block, lower case; a part that says nothing gives way to its parent.

        `attention.output.dense` is "output" in the block `attention`; `attention.dense` stays "dense" there.
        """
        parts = self.path.lower().split(".")
        inner = len(parts) - (len(block.split(".")) if block else 0)
        while inner > 1 and parts[-1] in WRAPPERS and parts[-1] != parts[-2]:
            parts, inner = parts[:-1], inner - 1
        return parts[-1]


@dataclass
class Inventory:
    """All weights of a model in order, with the module that each path names."""

    weights: list[Weight] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)


def inventory(model: nn.Module) -> Inventory:
    """Lists the weights of a model; a module shared by several layers is listed once, under its first name."""
    found = Inventory()
    for path, module in model.named_modules():
        found.modules[path] = module
        found.weights.extend(_weights_of(path, module))
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether this is a normalisation layer: a norm by its class, without sub-modules, with vectors at most."""
    from torch import nn

    named = isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm) or bool(NORM_CLASS.search(type(module).__name__))
    leaf = next(module.children(), None) is None
    return named and leaf and not isinstance(module, nn.Embedding | nn.Linear)


def _weights_of(path: str, module: nn.Module) -> list[Weight]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    own = dict(module.named_parameters(recurse=False))
    tensors = tuple(own.values())
    bias = own.get("bias") is not None
    if is_norm(module):
        shape = tuple(next((tensor.shape for name, tensor in own.items() if name != "bias"), ()))
        return [Weight(path, path, "norm", shape, out_features=math.prod(shape) or None, bias=bias, tensors=tensors)]
    if isinstance(module, Conv1D):
        size_in, size_out = module.weight.shape
        return [Weight(path, path, "conv1d", (size_in, size_out), size_in, size_out, bias, tensors)]
    if isinstance(module, nn.Embedding) and module.weight.ndim == 2:
        rows, width = module.weight.shape
        return [Weight(path, path, "embedding", (rows, width), rows, width, tensors=tensors)]
    if isinstance(module, nn.modules.conv._ConvNd):
        shape = tuple(module.weight.shape)
        return [Weight(path, path, "other", shape, module.in_channels, module.out_channels, bias, tensors)]
    size_in, size_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(size_in, int) and isinstance(size_out, int) and not isinstance(module, nn.ModuleList) and _flat(own):
        # From the features, not from the tensor: a quantised linear packs its weight into another shape.
        return [Weight(path, path, "linear", (size_out, size_in), size_in, size_out, bias, tensors)]
    return [_bare(path, name, own) for name in own if _is_bare_matrix(name, own)]


def _flat(own: dict[str, nn.Parameter]) -> bool:
    weight = own.get("weight")
    return weight is None or weight.ndim <= 2


def _is_bare_matrix(name: str, own: dict[str, nn.Parameter]) -> bool:
    """A parameter with two sizes above 1 that is not the bias of another parameter."""
    tensor = own[name]
    is_bias = name.endswith("_bias") and name.removesuffix("_bias") in own
    return not is_bias and sum(size > 1 for size in tensor.shape) >= 2


def _bare(path: str, name: str, own: dict[str, nn.Parameter]) -> Weight:
    bias = own.get(f"{name}_bias") if name != "weight" else None
    tensor = own[name]
    shape = tuple(tensor.shape)
    full = f"{path}.{name}" if path else name
    size_in, size_out = (shape[-1], math.prod(shape[:-1])) if len(shape) == 2 else (None, None)
    kept = (tensor,) if bias is None else (tensor, bias)
    return Weight(full, path, "parameter", shape, size_in, size_out, bias is not None, kept)
