"""The log-probabilities of the answers' tokens, from the model's own forward pass.

TRL asks its policy for them with `model(..., labels=labels, fused_lm_head=True)` and puts another forward on the model for
that, which goes past whatever an adapter, a copy that trains or a patch has put around the head. `TokenScorer` answers the
same question by calling the model as everybody does, for the positions from the first answer on.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, pad
from trl.trainer.utils import FusedCausalLMOutput

from luthier.core.data.examples import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

KEEP = "logits_to_keep"


class TokenScorer:
    """Stands where TRL calls its policy.

        scores = TokenScorer(model)(input_ids=..., attention_mask=..., labels=..., fused_lm_head=True)

    `labels` are (B, T) and not shifted, -100 where nothing is scored. `log_probs` of the answer are float32 (B, T - 1), 0
    where nothing is scored. Entropy and mean logits, which TRL reports and we do not, are 0. `last` is the last answer.
    """

    last: Any = None

    def __init__(self, model: Any) -> None:
        self._model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps = KEEP in inspect.signature(type(base).forward).parameters

    def __call__(self, *, labels: Tensor, fused_lm_head: bool = True, **inputs: Any) -> Any:
        scored = (labels[:, 1:] != IGNORED).any(dim=0)
        first = int(scored.float().argmax())
        keep = labels.shape[1] - first
        outputs = self._model(**inputs, **({KEEP: keep} if self._keeps else {}))
        logits = outputs.logits[:, -keep:][:, :-1]
        targets = labels[:, first + 1 :]
        # In float32 at least, as transformers' own losses are.
        flat = logits.reshape(-1, logits.shape[-1]).to(torch.promote_types(logits.dtype, torch.float32))
        losses = cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED, reduction="none")
        log_probs = pad(-losses.view(targets.shape), (first, 0))
        nothing = log_probs.new_zeros(log_probs.shape)
        self.last = FusedCausalLMOutput(
            log_probs=log_probs,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
            aux_loss=getattr(outputs, "aux_loss", None),
        )
        return self.last


def sequence_log_probs(log_probs: Tensor, completion_mask: Tensor, ld_alpha: float | None = None) -> Tensor:
    """Sums over each of the 2B sequences, float32 (2B,): what TRL compares policy and reference by.

    With `ld_alpha`, tokens beyond the length of the pair's shorter answer count that much (LD-DPO, Liu et al. 2024,
    arXiv:2409.06411).
    """
    if ld_alpha is None:
        return log_probs.sum(dim=1)
    mask = completion_mask[:, 1:]
    chosen, rejected = mask.sum(dim=1).chunk(2)
    shorter = chosen.minimum(rejected).repeat(2).unsqueeze(1)
    beyond = mask.cumsum(dim=1) > shorter
    return (log_probs * torch.where(beyond, ld_alpha, 1.0)).sum(dim=1)
