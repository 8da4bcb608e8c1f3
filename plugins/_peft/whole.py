"""Modules that train in whole (PEFT's `modules_to_save`): their copies in float32, and tied where the model ties them.

PEFT copies a module as it is. Beside bfloat16 weights the copy would be bfloat16 too and swallow every update below 1/256 of
a weight; so it is kept in float32 and computes in the format of its neighbours, as under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from luthier.core.errors import ConfigError

NARROW = (torch.bfloat16, torch.float16)


class KeptWide:
    """Mixed into the class of a module whose parameters are float32 among narrower ones; `narrow` is their format."""

    narrow: torch.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own, with products in the narrow format, and its output in it."""
        device = next(self.parameters()).device.type  # type: ignore[attr-defined]
        with torch.autocast(device, dtype=self.narrow):
            output = super().forward(*args, **kwargs)  # type: ignore[misc]
        return output.to(self.narrow)


def kept_wide(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of the same module, kept wide."""
    return type(f"Wide{cls.__name__}", (KeptWide, cls), {})


def prepare_whole_modules(model: Any, *, method: str) -> None:
    """Float32 copies of what trains in whole, tied as the model ties. Raises ConfigError where one is quantised."""
    for name, copy in trained_copies(model):
        formats = {parameter.dtype for parameter in copy.parameters()}
        if not all(dtype.is_floating_point for dtype in formats):
            raise ConfigError(
                f"{method}: {name} is stored quantised and cannot train in whole",
                where="adapter.modules_to_save",
                fix="leave it out here, or let the quantisation skip it",
            )
        if formats & set(NARROW):
            narrow = next(iter(formats & set(NARROW)))
            copy.float()
            copy.__class__ = kept_wide(type(copy))
            copy.narrow = narrow
    tie_whole_modules(model)


def restore_whole_modules(model: Any) -> None:
    """The copies in the format of the base model again, and of their own class, as they are left in a merged model."""
    for _, copy in trained_copies(model):
        if isinstance(copy, KeptWide):
            module: Any = copy
            narrow = module.narrow
            module.__class__ = type(module).__mro__[2]
            module.to(narrow)
            del module.narrow
    tie_whole_modules(model)


def tie_whole_modules(model: Any) -> None:
    """Where the model ties head and embeddings and both train in whole, make their copies share one matrix.

    PEFT's own `ensure_weight_tying` goes by the module's name and passes over GPT-2's.
    """
    base = model.get_base_model()
    if not getattr(base.config.get_text_config(), "tie_word_embeddings", False):
        return
    embed, head = (_copy_of(module) for module in (base.get_input_embeddings(), base.get_output_embeddings()))
    if embed is not None and head is not None:
        head.weight = embed.weight


def trained_copies(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, the copy that trains) of every module that trains in whole."""
    for name, module in list(model.named_modules()):
        copy = _copy_of(module)
        if copy is not None:
            yield name.removeprefix("base_model.model."), copy


def _copy_of(module: Any) -> Any:
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper) or "default" not in module.modules_to_save:
        return None
    return module.modules_to_save["default"]
