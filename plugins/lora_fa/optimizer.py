"""LoRA-FA's step: AdamW on B, with B's gradient replaced by the one whose update comes nearest to the full gradient.

The update of a layer is s B A. With A fixed, B moved by d moves the weight by s d A; nearest to the full gradient G, in the
Frobenius norm, is

    d = (1/s) G A^T (A A^T)^-1 = (1/s^2) g (A A^T)^-1        since B's own gradient is g = s G A^T

(the paper's section 3.3). PEFT keeps A as (rank, in) and B as (out, rank).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from luthier.core.contracts import NothingPatched

INVERSE: Final = "inverse_gram"


class Update(NamedTuple):
    """The frozen A (rank x experts, in) and trained B (out, rank x experts) of one layer, and the scale s of its product."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    experts: int


def freeze_a(model: nn.Module) -> list[Update]:
    """Freezes A in every update of a linear layer that trains; raises NothingPatched where there is none.

    Updates of embeddings are left to AdamW whole: PEFT starts their A at zero, and with it fixed they would never move.
    """
    updates = []
    for module in model.modules():
        layer: Any = module
        if not isinstance(getattr(layer, "lora_B", None), nn.ModuleDict):
            continue
        for adapter, factor in layer.lora_B.items():
            if factor.weight.requires_grad:
                a = layer.lora_A[adapter].weight.requires_grad_(False)
                updates.append(Update(a, factor.weight, float(layer.scaling[adapter]), getattr(layer, "num_experts", 1)))
    if not updates:
        raise NothingPatched(
            "lora_fa: no parameter that trains is the B of a low-rank update of a linear layer; take `adamw`"
        )
    return updates


class LoraFa(torch.optim.AdamW):
    """torch's AdamW over `groups`, with the gradient of each B of `updates` corrected before the step.

    B's moments are those of the corrected gradient; beside them lies (A A^T)^-1, which is computed once. A B without
    gradient is left alone. `options` are AdamW's.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], updates: Sequence[Update], **options: Any) -> None:
        super().__init__(groups, **options)
        self._updates = tuple(updates)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` returned, if there was one."""
        loss = closure() if closure is not None else None
        first: dict[nn.Parameter, Tensor] = {}
        for update in self._updates:
            if update.b.grad is None:
                continue
            inverse = self.state[update.b].get(INVERSE) if update.b in self.state else None
            if inverse is None:
                inverse = first[update.b] = inverse_gram(update)
            update.b.grad = corrected(update.b.grad, inverse, update.scale)
        super().step()
        for b, inverse in first.items():  # after the step: AdamW starts only where there is no state yet
            self.state[b][INVERSE] = inverse
        return loss


def inverse_gram(update: Update) -> Tensor:
    """(A A^T)^-1 of every expert, (experts, rank, rank), float32 at the least.

    PEFT lays A out as (experts, rank, in). Where rows of A depend on each other, the pseudo-inverse gives the shortest of
    the nearest steps.
    """
    a = update.a.detach().to(torch.promote_types(update.a.dtype, torch.float32))
    a = a.reshape(update.experts, -1, a.shape[-1])
    return torch.linalg.pinv(a @ a.mT, hermitian=True)


def corrected(grad: Tensor, inverse: Tensor, scale: float) -> Tensor:
    """(1/s^2) grad (A A^T)^-1 for B's gradient, which lies (out, rank, experts); like `grad` in shape and dtype."""
    parts = grad.to(torch.promote_types(grad.dtype, inverse.dtype)).reshape(grad.shape[0], -1, inverse.shape[0])
    nearest = torch.einsum("ore,erq->oqe", parts, inverse.to(parts.dtype))
    return nearest.div_(scale**2).reshape(grad.shape).to(grad.dtype)
