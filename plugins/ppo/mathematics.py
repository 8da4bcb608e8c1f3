"""The mathematics of PPO on token sequences: pure functions of tensors, masked.

Tensors of a rollout are (B, R): B answers, padded on the right to R tokens; `mask`, bool, is true for tokens of an answer.
Those of an update are flat, (N,): the tokens of the answers, nothing else. Everything is computed in the dtype it comes in.

    r_t   = -beta (log pi(a_t) - log ref(a_t)),  and the score of the answer at its last token
    d_t   = r_t + gamma V_t+1 - V_t              V is 0 after the last token
    A_t   = d_t + gamma lambda A_t+1             Schulman et al. 2016, arXiv:1506.02438, equation 16
    R_t   = A_t + V_t
    L_pi  = mean max(-A rho, -A clip(rho, 1 - eps, 1 + eps)),  rho = pi / pi_old     Schulman et al. 2017, arXiv:1707.06347
    L_V   = 1/2 mean max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# Ziegler et al. 2019, arXiv:1909.08593, section 2.2: how far one batch may move the coefficient, and how much.
MOST_ERROR: Final = 0.2
GAIN: Final = 0.1
EPSILON: Final = 1e-8


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values whose `mask` is true, a tensor of no dimensions; 0 where there is none."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """(values - mean) / standard deviation over the tokens of `mask`, 0 elsewhere; with `keep_mean` the mean is added again.

    The variance is the biased one, and a little is added to it: values that are all the same become 0, not infinite.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    white = (values - mean) * torch.rsqrt(variance + EPSILON)
    return torch.where(mask, white + mean if keep_mean else white, 0)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """The reward of each token, (B, R): minus `coefficient` times its KL term, and the score (B,) at an answer's last token.

    An answer of no tokens gets none.
    """
    rewards = torch.where(mask, -coefficient * kl, 0)
    last = mask & ~torch.nn.functional.pad(mask, (0, 1))[:, 1:]
    return rewards + torch.where(last, scores[:, None], 0)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, (B, R) each, 0 where `mask` is false."""
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))  # the advantage of the token after, 0 after the last one
    next_value = values.new_zeros(len(values))
    for at in range(values.shape[1] - 1, -1, -1):
        inside = mask[:, at]
        delta = rewards[:, at] + gamma * next_value - values[:, at]
        following = torch.where(inside, delta + gamma * lam * following, 0)
        next_value = torch.where(inside, values[:, at], 0)
        advantages[:, at] = following
    return advantages, torch.where(mask, advantages + values, 0)


@dataclass(frozen=True)
class PolicyLoss:
    """`loss` is a sum over tokens; the rest are sums for metrics, without gradient.

    clipped    tokens whose ratio the loss held fast: where the clipped term is the greater one
    kl         sum of rho - 1 - log rho, an estimate of KL(old || new) that is never negative (Schulman 2020,
               http://joschu.net/blog/kl-approx.html)
    """

    loss: Tensor
    clipped: Tensor
    kl: Tensor


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, clip: float) -> PolicyLoss:
    """The clipped surrogate over tokens (N,), as a sum."""
    difference = logprobs - old
    ratio = torch.exp(difference)
    free, held = -advantages * ratio, -advantages * torch.clamp(ratio, 1 - clip, 1 + clip)
    with torch.no_grad():
        clipped, kl = (held > free).sum(), (ratio - 1 - difference).sum()
    return PolicyLoss(torch.maximum(free, held).sum(), clipped, kl)


@dataclass(frozen=True)
class ValueLoss:
    """`loss` is a sum over tokens; `clipped` counts those whose clipped term is the greater one."""

    loss: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> ValueLoss:
    """Half the squared error over tokens (N,), as a sum; with `clip` values may not gain by moving further than that."""
    free = (values - returns) ** 2
    if clip is None:
        return ValueLoss(0.5 * free.sum(), torch.zeros((), device=values.device))
    held = (old + torch.clamp(values - old, -clip, clip) - returns) ** 2
    return ValueLoss(0.5 * torch.maximum(free, held).sum(), (held > free).detach().sum())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 a constant one; 0 where the returns do not vary."""
    spread = _variance(returns, mask)
    return float(1 - _variance(returns - values, mask) / spread) if spread > EPSILON else 0.0


def _variance(values: Tensor, mask: Tensor) -> Tensor:
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def next_coefficient(coefficient: float, kl: float, target: float) -> float:
    """Ziegler's controller: the coefficient after a batch whose mean KL of an answer was `kl` nats.

    beta <- beta (1 + 0.1 e),  e = kl / target - 1, held between -0.2 and 0.2.
    """
    error = min(max(kl / target - 1, -MOST_ERROR), MOST_ERROR)
    return coefficient * (1 + GAIN * error)
