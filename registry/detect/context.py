"""What a weight stands in: attention, mixer, experts, MLP, ... read from the modules around it, from the inside out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from luthier.registry.detect.stack import Recorded
from luthier.registry.detect.vocabulary import (
    ADAPTER,
    ATTENTION_CLASS,
    ATTENTION_NAME,
    CROSS_ATTENTION,
    EXPERTS_NAME,
    INDEX,
    MIXER_CLASS,
    MLP_CLASS,
    MLP_NAME,
    RECURRENCE,
    RESIDUAL,
    ROUTER_CLASS,
    SHARED_NAME,
)
from luthier.registry.detect.weights import Weight, is_norm

DECISIVE: Final = ("index", "norm", "residual", "adapter", "router", "mixer", "cross", "attention")
"""Contexts that hold for everything inside, in the order in which they are asked for one module."""


@dataclass
class Contexts:
    """Judges the modules of one model; remembers each answer, because every layer asks about the same ones."""

    modules: dict[str, Any]
    declared: Recorded
    _kinds: dict[str, str] = field(default_factory=dict)

    def place(self, weight: Weight, layer: str) -> None:
        """Sets `context` and `block` of a weight that lies in the decoder layer at path `layer`."""
        around = list(self._around(weight, layer))
        for path in around:
            if self.kind(path) in DECISIVE:
                weight.context = self.kind(path)
                weight.block = self._outermost(path, around)
                return
        for context in ("experts", "mlp"):
            inside = next((path for path in around if self.kind(path) == context), None)
            if inside is not None:
                weight.context, weight.block = context, self._with_two_matrices(inside, around)
                return
        weight.context, weight.block = "layer", layer

    def kind(self, path: str) -> str:
        """The context that one module makes, or ""."""
        if path not in self._kinds:
            self._kinds[path] = self._judge(path)
        return self._kinds[path]

    def _around(self, weight: Weight, layer: str) -> list[str]:
        """The modules around a weight, innermost first, the layer itself excluded."""
        path = weight.module if weight.kind == "parameter" else weight.module.rpartition(".")[0]
        around = []
        while len(path) > len(layer):
            around.append(path)
            path = path.rpartition(".")[0]
        return around

    def _outermost(self, path: str, around: list[str]) -> str:
        """The outermost module of the same context in one row: `attention` for `attention.self`.

        A list of blocks (`self_attn.0`, `self_attn.1`) is no block: its entries are.
        """
        from torch import nn

        kind, start = self.kind(path), around.index(path)
        for outer in around[start + 1 :]:
            if self.kind(outer) != kind or isinstance(self.modules[outer], nn.ModuleList):
                break
            path = outer
        if isinstance(self.modules[path], nn.ModuleList) and start > 0:
            return around[start - 1]
        return path

    def _with_two_matrices(self, path: str, around: list[str]) -> str:
        """The nearest module outwards that holds more than one matrix: `feed_forward` for `feed_forward.dense`."""
        for outer in around[around.index(path) :]:
            if not self.kind(outer):
                break
            path = outer
            if sum(tensor.ndim > 1 for tensor in self.modules[outer].parameters()) > 1:
                break
        return path

    def _judge(self, path: str) -> str:
        module = self.modules[path]
        name, cls = path.rsplit(".", 1)[-1], type(module).__name__
        if INDEX.search(name) or INDEX.search(cls):
            return "index"
        if cls.endswith(("Norm", "Layernorm")) and not is_norm(module):
            return "norm"
        if RESIDUAL.search(name) or RESIDUAL.search(cls):
            return "residual"
        if ADAPTER.search(name):
            return "adapter"
        if self._is_router(path, name, cls):
            return "router"
        if MIXER_CLASS.search(cls) or carries_state(module):
            return "mixer"
        if CROSS_ATTENTION.search(name) or CROSS_ATTENTION.search(cls):
            return "cross"
        if cls in self.declared.attention or ATTENTION_NAME.search(name) or ATTENTION_CLASS.search(cls):
            return "attention"
        if EXPERTS_NAME.search(name) and not SHARED_NAME.search(name):
            return "experts"
        if cls.endswith("ParallelExperts"):
            return "experts"
        if MLP_NAME.search(name) or MLP_CLASS.search(cls):
            return "mlp"
        return ""

    def _is_router(self, path: str, name: str, cls: str) -> bool:
        if ROUTER_CLASS.search(cls):
            return True
        siblings = {child for child, _ in self.modules[path.rpartition(".")[0]].named_children()}
        return name in ("gate", "router") and any(EXPERTS_NAME.search(sibling) for sibling in siblings)


def carries_state(module: Any) -> bool:
    """Whether a module, or a direct child of it, owns what only a recurrence along the sequence has."""
    for part in (module, *module.children()):
        own = {name for name, _ in part.named_parameters(recurse=False)} | {
            name for name, _ in part.named_buffers(recurse=False)
        }
        if RECURRENCE & (own | {name for name, _ in part.named_children()}):
            return part is module or not _is_whole_block(part)
    return False


def _is_whole_block(module: Any) -> bool:
    """A child that is a mixer of its own leaves the module around it a mere container (a layer inside a layer)."""
    from torch import nn

    return sum(isinstance(part, nn.Linear) for part in module.modules()) > 2
