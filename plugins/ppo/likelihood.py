"""Log-probability and entropy of sampled tokens, with one gradient of the logits and no other copy of them.

The logits of a batch are the largest tensor of an update. torch's log-softmax keeps another of that size for the backward
pass, and the entropy two more; here a few rows at a time are turned into float32, and the backward pass does that again.

    log p(a) = z_a - log sum exp z                        d log p(a) / dz = 1[a] - p
    H        = log sum exp z - sum p z                    dH / dz         = -p (log p + H)
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

ROWS: Final = 128  # rows of logits that are in float32 at one time


class _Statistics(torch.autograd.Function):
    """(log-probability, entropy), float32 or wider of shape (N,), of rows of logits (N, V)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, banned: Tensor | None, ends: Tensor) -> Any:
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs, entropy = (torch.empty(len(logits), dtype=wide, device=logits.device) for _ in range(2))
        for begin in range(0, len(logits), ROWS):
            rows = slice(begin, begin + ROWS)
            log_p = _log_softmax(logits[rows], wide, temperature, None if banned is None else banned[rows], ends)
            logprobs[rows] = log_p.gather(1, tokens[rows, None])[:, 0]
            entropy[rows] = -(log_p.exp() * log_p).sum(dim=1)
        ctx.save_for_backward(logits, tokens, banned, ends, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, tokens, banned, ends, entropy = ctx.saved_tensors
        of_logprob, of_entropy = gradients
        result = torch.empty_like(logits)
        for begin in range(0, len(logits), ROWS):
            rows = slice(begin, begin + ROWS)
            log_p = _log_softmax(
                logits[rows], entropy.dtype, ctx.temperature, None if banned is None else banned[rows], ends
            )
            p = log_p.exp()
            part = torch.zeros_like(p)
            if of_entropy is not None:
                part -= p * (log_p + entropy[rows, None]) * of_entropy[rows, None]
            if of_logprob is not None:
                part -= p * of_logprob[rows, None]
                part.scatter_add_(1, tokens[rows, None], of_logprob[rows, None])
            result[rows] = part / ctx.temperature
        return result, None, None, None, None


def token_statistics(
    logits: Tensor, tokens: Tensor, *, temperature: float, banned: Tensor | None = None, ends: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(log-probabilities, entropies), each (N,), of `tokens` (N,) under logits (N, V) at `temperature`.

    Where `banned`, bool (N,), is true, the tokens of `ends` could not be sampled, because the answer was still too short:
    they have no probability there, for the policy and for the reference alike.
    """
    if ends is None:
        ends = tokens.new_empty(0)
    logprobs, entropy = _Statistics.apply(logits, tokens, temperature, banned, ends)
    return logprobs, entropy


def _log_softmax(logits: Tensor, wide: torch.dtype, temperature: float, banned: Tensor | None, ends: Tensor) -> Tensor:
    scaled = logits.to(wide) / temperature
    if banned is not None and len(ends):
        # The smallest number instead of minus infinity: a probability of 0 times it is 0, and not NaN.
        scaled[banned[:, None] & _one_of(ends, scaled.shape[1])] = torch.finfo(wide).min
    return torch.log_softmax(scaled, dim=1)


def _one_of(ends: Tensor, size: int) -> Tensor:
    found = torch.zeros(1, size, dtype=torch.bool, device=ends.device)
    found[0, ends] = True
    return found
