"""Everything about a model that a patch may change, so that what it changed and what it left behind can be named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

# What torch keeps in a module's own dictionary and is looked at by itself, or is no property of the model.
INTERNAL: Final = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLAIN: Final = (bool, int, float, str, torch.dtype, type(None))

Fingerprint = dict[str, Any]


def fingerprint(model: nn.Module) -> Fingerprint:
    """Modules, their classes, hooks and attributes, parameters and buffers with their values, the configuration, and the
    `code`; by a name that says where it is."""
    return dict(_entries(model)) | code(model)


def code(model: nn.Module) -> Fingerprint:
    """The methods of the model's classes, and what stands beside them in transformers' modelling files."""
    return dict(_code({cls: None for module in model.modules() for cls in type(module).__mro__}))


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """The names under which something is not what it was."""
    absent = object()
    return [name for name in {**before, **now} if not _same(before.get(name, absent), now.get(name, absent))]


def _entries(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules(remove_duplicate=False):
        place = path or "the model"
        yield place, module
        yield f"{place}.__class__", type(module)
        for name, value in vars(module).items():
            if name in HOOKS:
                yield f"{place}.{name}", list(value.values())
            elif name not in INTERNAL and not name.endswith(("_hooks_with_kwargs", "_hooks_always_called")):
                yield f"{place}.{name}", value
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            yield f"{place}.{name} (values)", tensor.detach().clone()
            yield f"{place}.{name}", tensor
            yield f"{place}.{name}.requires_grad", tensor.requires_grad
    for name in ("config", "generation_config"):
        if hasattr(model, name):
            yield f"the model's {name}", getattr(model, name).to_json_string()


def _code(classes: dict[type, None]) -> Iterator[tuple[str, Any]]:
    files = {cls.__module__ for cls in classes}
    for cls in classes:
        if cls.__module__ not in ("builtins", "typing"):
            for name, value in vars(cls).items():
                if callable(value):
                    yield f"{cls.__module__}.{cls.__qualname__}.{name}", value
    for file in sorted(files):
        if ".modeling_" in file:
            for name, value in vars(sys.modules[file]).items():
                if callable(value):
                    yield f"{file}.{name}", value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and not isinstance(one, nn.Parameter):
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, PLAIN) and isinstance(other, PLAIN):
        return type(one) is type(other) and one == other
    return one is other
