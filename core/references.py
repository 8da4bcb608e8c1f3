"""The reference policy: the model as training found it, which preference and reinforcement stages compare with.

    disabled      the same model with what trains switched off; adapters below it stay on
    copied        a frozen copy of the adapter as it was, on the same base
    model         a frozen copy of the whole model
    precomputed   none is kept: whatever is needed of it is computed before the first step

PEFT's own `disable_adapter` and `set_adapter` decide at every call which parameters train: they unfreeze what an optimizer
or a stack froze. Here only the switches that the forward pass reads are turned, and turned back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import LuthierError
from luthier.core.generation import evaluating

if TYPE_CHECKING:
    from torch import nn

    from luthier.core.contracts import Reference

TRAINED: Final = "default"
REFERENCE: Final = "reference"
WORDS: Final[dict[str, str]] = {
    "disabled": "the same model with the adapter off",
    "copied": "a frozen copy of the adapter on the same base",
    "precomputed": "computed before the first step",
    "model": "a frozen copy of the whole model",
}


class ReferencePolicy:
    """Made when a stage begins, before anything has trained; a resumed run makes it before its checkpoint is loaded.

        reference = ReferencePolicy(model, how)
        with torch.no_grad(), reference() as frozen:
            logits = frozen(**inputs).logits

    `how` is the `reference` of the plan's stage step. Inside the block the module that is given computes it; it is
    `model` itself, switched over, except for "model". "precomputed" gives the model as it is: use it before it trains.
    The block is for forward passes without gradients: a graph built in it would be recomputed under other switches.
    """

    def __init__(self, model: nn.Module, how: Reference) -> None:
        self.how = how
        self._model: Any = model
        self._whole: nn.Module | None = None
        if how in ("disabled", "copied") and not adapter_layers(model):
            raise LuthierError(
                "nothing of this model can be switched off to compute the reference policy",
                where="stage",
                fix="choose another reference, for example `reference: model`",
            )
        if how == "model":
            self._whole = copy.deepcopy(model).eval().requires_grad_(False)
        elif how == "copied":
            copy_adapter(model, REFERENCE)

    @contextmanager
    def __call__(self) -> Iterator[nn.Module]:
        if self._whole is not None:
            yield self._whole
            return
        instead: dict[str, str | None] = {}
        if self.how != "precomputed":
            instead = {TRAINED: REFERENCE if self.how == "copied" else None}
        # The reference has no dropout, and nothing is recomputed for it.
        with evaluating(self._model), active_adapters(self._model, **instead):
            yield self._model


def copy_adapter(model: Any, name: str) -> None:
    """A frozen copy of the adapter that trains, called `name`, inactive; what trained before trains after."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    active = {id(layer): layer.active_adapters for layer in adapter_layers(model)}
    model.add_adapter(name, copy.deepcopy(model.peft_config[TRAINED]))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    copies = 0
    for key, parameter in parameters.items():
        if f".{name}." in f"{key}.":
            source = parameters[f"{key}.".replace(f".{name}.", f".{TRAINED}.")[:-1]]
            parameter.data.copy_(source.data)
            copies += 1
    if not copies:
        raise LuthierError(
            "the adapter has no parameters that could be copied for the reference policy",
            where="stage",
            fix="choose another reference, for example `reference: model`",
        )
    for layer in adapter_layers(model):
        if id(layer) in active:
            layer._active_adapter = list(active[id(layer)])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


@contextmanager
def active_adapters(model: Any, **instead: str | None) -> Iterator[None]:
    """Within the block each named adapter is replaced by another, or by none, wherever it is active in the forward pass."""
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in adapter_layers(model)]
    for layer, _, _ in before:
        wanted = [instead.get(name, name) for name in layer.active_adapters]
        names = [name for name in wanted if name is not None]
        if names:
            layer._active_adapter = names
        else:
            layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, active, disabled in before:
            layer._active_adapter, layer._disable_adapters = active, disabled


def adapter_layers(model: Any) -> list[Any]:
    """Every module of a PEFT model that has an adapter: wrapped layers, and modules that train in whole or in part."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
