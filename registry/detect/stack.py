"""Which list of layers is the text decoder, and what lies beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ModelError
from luthier.registry.detect.vocabulary import OTHER_PART

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Stack:
    """The decoder's layer list at `path`; `others` are further lists of text layers, `towers` the parts that are no text."""

    path: str
    layers: tuple[nn.Module, ...]
    others: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()

    def layer_of(self, path: str) -> int | None:
        """The layer that a module or parameter path lies in."""
        prefix = f"{self.path}."
        if not path.startswith(prefix):
            return None
        number = path[len(prefix) :].split(".", 1)[0]
        return int(number) if number.isdigit() else None

    def in_tower(self, path: str) -> bool:
        return any(path == tower or path.startswith(f"{tower}.") for tower in self.towers)


@dataclass(frozen=True)
class Recorded:
    """Class names that the model itself declares: its decoder layers and its attention modules."""

    layers: frozenset[str]
    attention: frozenset[str]


def recorded(model: Any) -> Recorded:
    """Reads `_no_split_modules` and `_can_record_outputs` of the model and of every model inside it."""
    layers: set[str] = set()
    attention: set[str] = set()
    for module in model.modules():
        layers |= set(getattr(module, "_no_split_modules", None) or ())
        outputs = getattr(module, "_can_record_outputs", None)
        if isinstance(outputs, dict):
            layers |= set(_class_names(outputs.get("hidden_states")))
            attention |= set(_class_names(outputs.get("attentions")))
    return Recorded(frozenset(layers), frozenset(attention))


def _class_names(value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list | tuple) else (value,):
        target = getattr(item, "target_class", item)
        if isinstance(target, type):
            yield target.__name__


def find_stack(model: Any, declared: Recorded, decoder_path: str = "") -> Stack:
    """The stack of decoder layers; raises ModelError when there is no list of layers at all.

    Among the lists of layers, those inside `get_decoder()` come first, then those whose layers the model declares in
    `_no_split_modules` or `_can_record_outputs`, then the one with most parameters.
    """
    modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    lists = _layer_lists(modules)
    if decoder_path:
        if decoder_path not in modules:
            raise ModelError(f"an architecture family names the decoder {decoder_path!r}, which this model has not")
        chosen = decoder_path
    else:
        text = [path for path in lists if not any(OTHER_PART.search(part) for part in path.split("."))]
        if not text:
            raise ModelError(
                "no list of decoder layers was found in this model",
                where=type(model).__name__,
                fix="describe the model type with an ArchitectureFamily (hook luthier_architectures)",
            )
        inside = _decoder_prefix(model, modules)
        chosen = max(text, key=lambda path: _rank(path, modules[path], inside, declared))
    layers = tuple(modules[chosen].children())
    towers = _towers(model, modules, chosen)
    beside = Stack(chosen, layers, towers=towers)
    others = tuple(path for path in lists if path != chosen and not beside.in_tower(path) and beside.layer_of(path) is None)
    return Stack(chosen, layers, others, towers)


def _layer_lists(modules: dict[str, Any]) -> list[str]:
    """Lists of modules that have matrices in sub-modules of their own, and do not lie in another such list."""
    from torch import nn

    lists: list[str] = []
    for path, module in modules.items():
        if not isinstance(module, nn.ModuleList) or not len(module) or any(path.startswith(f"{outer}.") for outer in lists):
            continue
        first = module[0]
        if next(first.children(), None) is not None and any(tensor.ndim > 1 for tensor in first.parameters()):
            lists.append(path)
    return lists


def _decoder_prefix(model: Any, modules: dict[str, Any]) -> str:
    """The path of `get_decoder()`, or "" where the model does not tell."""
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return ""
    return next((path for path, module in modules.items() if module is decoder), "")


def _rank(path: str, layers: Any, inside: str, declared: Recorded) -> tuple[bool, bool, int]:
    known = any(type(layer).__name__ in declared.layers for layer in layers)
    return path.startswith(f"{inside}.") if inside else True, known, sum(tensor.numel() for tensor in layers.parameters())


def _towers(model: Any, modules: dict[str, Any], stack: str) -> tuple[str, ...]:
    """The topmost modules beside the decoder that hold weights and are, or contain, something named as another tower."""
    kept = {stack}
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError, TypeError):
            continue
        kept |= {path for path, other in modules.items() if module is not None and other is module}
    named = {path for path in modules if OTHER_PART.search(path.rsplit(".", 1)[-1])}
    towers: list[str] = []
    for path, module in modules.items():
        within = not path or any(path.startswith(f"{tower}.") for tower in towers)
        in_stack = path == stack or path.startswith(f"{stack}.")
        if within or in_stack or any(keep == path or keep.startswith(f"{path}.") for keep in kept):
            continue
        if any(other == path or other.startswith(f"{path}.") for other in named) and any(True for _ in module.parameters()):
            towers.append(path)
    return tuple(towers)
