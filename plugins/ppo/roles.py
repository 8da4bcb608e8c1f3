"""Four roles on one base model, and who is active when.

    role        adapters in the forward pass                       head             trains
    policy      default, what it stands on                         language model   default
    reference   what it stands on (or a frozen copy of default)    language model   nothing
    value       default, or critic with `value_adapter`            values           head, and critic
    reward      reward                                             score            nothing

Switching turns what the forward pass reads and nothing else: PEFT's `set_adapter` would freeze the adapter that it leaves,
and the gradients of a graph that was built before would be gone. A layer that recomputes its activations does so with the
adapter that is active then, so every backward pass runs inside the block that its forward pass ran in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from luthier.core.references import TRAINED, ReferencePolicy, active_adapters, adapter_layers, copy_adapter

if TYPE_CHECKING:
    from luthier.core.contracts import Reference

# Not "value", which is what some models call a projection of their attention.
VALUE: Final = "critic"
HEAD: Final = "value_head"


class ValueHead(nn.Module):
    """Hidden states (N, H) to values (N,), in float32 whatever they are in. It begins at zero: every value is 0.

    The weight is a vector, so that no optimizer takes it for one of the model's matrices.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        # A sum of products, which autocast leaves in float32.
        return (hidden.float() * self.weight).sum(dim=-1) + self.bias


class Roles:
    """Made once, before a checkpoint is loaded and before the optimizer is built: the reference is the model as it is now.

    `model` stays the one model of the run. `value_adapter` gives the values an adapter of their own, which begins as a copy
    of the policy's.
    """

    def __init__(self, model: nn.Module, *, reference: Reference, value_adapter: bool, hidden_size: int) -> None:
        self.model: Any = model
        self.value_adapter = value_adapter
        # In this order: a reference that is a copy of the whole model is no place for the adapters that are put on it.
        self.reference = ReferencePolicy(model, reference)
        if value_adapter:
            copy_adapter(model, VALUE)
            self._train_value_adapter()
        device = next(model.parameters()).device
        self.head = ValueHead(hidden_size).to(device)

    def _train_value_adapter(self) -> None:
        """Of the copy, that trains which does in the policy's adapter, in the format in which that trains."""
        for layer in adapter_layers(self.model):
            whole = getattr(layer, "modules_to_save", None)
            if whole is not None and TRAINED in whole:
                # PEFT copies the module of the base, which may be narrower than what trains.
                whole[VALUE] = copy.deepcopy(whole[TRAINED])
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            if f".{VALUE}." in f"{name}.":
                source = parameters.get(f"{name}.".replace(f".{VALUE}.", f".{TRAINED}.")[:-1])
                parameter.requires_grad_(source is not None and source.requires_grad)

    @contextmanager
    def values(self) -> Iterator[nn.Module]:
        """Within the block the model computes the hidden states that values are read from."""
        with active_adapters(self.model, **({TRAINED: VALUE} if self.value_adapter else {})):
            yield self.model

    @contextmanager
    def with_head(self) -> Iterator[None]:
        """Within the block the value head is a part of the model, for whoever collects what trains."""
        self.model.add_module(HEAD, self.head)
        try:
            yield
        finally:
            delattr(self.model, HEAD)

    def own_state(self) -> dict[str, Tensor]:
        """What trains here and is not saved with the policy: the value head, and the value adapter."""
        state = {f"{HEAD}.{name}": value for name, value in self.head.state_dict().items()}
        return state | {name: parameter.detach() for name, parameter in self._value_parameters()}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """What `own_state` gave; a tensor that is missing raises KeyError."""
        self.head.load_state_dict({name: state[f"{HEAD}.{name}"] for name in self.head.state_dict()})
        with torch.no_grad():
            for name, parameter in self._value_parameters():
                parameter.copy_(state[name])

    def _value_parameters(self) -> list[tuple[str, nn.Parameter]]:
        if not self.value_adapter:
            return []
        return [(name, one) for name, one in self.model.named_parameters() if f".{VALUE}." in f"{name}."]


def active_names(model: Any) -> list[str]:
    """The names of the adapters that are active in the forward pass, in the order in which they are met."""
    return list(dict.fromkeys(name for layer in adapter_layers(model) for name in layer.active_adapters))
