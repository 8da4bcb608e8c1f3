"""GaLore that frees each projected weight's gradient within the backward pass (section 4.3 of arXiv:2403.03507).

As soon as autograd has a weight's gradient G, a hook adds P^T G to a buffer of the small size and drops G:

    micro-batch 1    held  = P^T G1          at a step that is due for a refresh, P comes from G1 first
    micro-batch 2    held += P^T G2
    step             as GaLoreAdamW takes it with P^T G, from `held`

P^T G1 + P^T G2 = P^T (G1 + G2), so accumulation changes nothing; but at a refresh P is that of G1 alone, where it is that of
G1 + G2 otherwise. Parameters that are not projected keep their `.grad`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from luthier.plugins.galore.low_rank_adam import GaLoreAdamW

# A weight gives its gradient to one optimizer: to the last that was built over it.
_HOOKS: Final[Any] = WeakIdKeyDictionary()


class LayerwiseGaLoreAdamW(GaLoreAdamW):
    """GaLoreAdamW that takes gradients of projected weights as they come up, and leaves none in their `.grad`.

    Gradients are dropped by `zero_grad` of the optimizer; that of the model does not know the buffers. The hooks go when the
    optimizer does.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps)
        self._held: dict[Tensor, Tensor] = {}
        handles = []
        for number, group in enumerate(self.param_groups):
            for weight in group["params"] if "rank" in group else ():
                if weight in _HOOKS:
                    _HOOKS[weight].remove()
                _HOOKS[weight] = weight.register_post_accumulate_grad_hook(_hook(weakref.ref(self), number))
                handles.append(_HOOKS[weight])
        weakref.finalize(self, _remove, handles)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._held.clear()
        super().zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._held.clear()
        super().load_state_dict(state_dict)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scales what is held, projected and not, down to a global norm of `max_norm`; returns the norm from before.

        A projected gradient is never longer than the whole one: this norm is at most that of the gradients.
        """
        gradients = [w.grad for group in self.param_groups for w in group["params"] if w.grad is not None]
        gradients += self._held.values()
        norm = get_total_norm(gradients)
        if max_norm != float("inf"):
            factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            for gradient in gradients:
                gradient.mul_(factor)
        return norm

    def _gradient(self, weight: Tensor, group: dict[str, Any]) -> Tensor | None:
        if "rank" not in group:
            return weight.grad
        if weight.grad is not None:  # put there by other hands than autograd's
            self._take(weight, group)
        return self._held.pop(weight, None)

    def _take(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        held = self._held.get(weight)
        with torch.no_grad():
            small = self._projected(weight, gradient, group, refresh=held is None)
        self._held[weight] = small if held is None else held.add_(small)


def _hook(optimizer: weakref.ref[LayerwiseGaLoreAdamW], number: int) -> Callable[[Tensor], None]:
    """By number: loading state puts new group objects in place of those the optimizer was built with."""

    def take(weight: Tensor) -> None:
        owner = optimizer()
        if owner is not None:
            owner._take(weight, owner.param_groups[number])

    return take


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
