"""PPO's formulas against plain loops over Python's own floats, written from the papers."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from luthier.plugins.ppo import mathematics as ppo

LENGTHS = (5, 1, 7, 3)
WIDTH = max(LENGTHS)


def table(seed: int, scale: float = 1.0) -> list[list[float]]:
    """Rows of the lengths above."""
    source = random.Random(seed)
    return [[source.gauss(0, scale) for _ in range(length)] for length in LENGTHS]


def padded(rows: list[list[float]], fill: float = 99.0) -> torch.Tensor:
    """As float64 (B, R); what lies outside is something that must not count."""
    return torch.tensor([row + [fill] * (WIDTH - len(row)) for row in rows], dtype=torch.float64)


MASK = torch.tensor([[at < length for at in range(WIDTH)] for length in LENGTHS])


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def test_whitening() -> None:
    rows = table(1, 3.0)
    values = [value for row in rows for value in row]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    white = ppo.whiten(padded(rows), MASK)
    torch.testing.assert_close(white[MASK], (flat(rows) - mean) / deviation, rtol=1e-7, atol=1e-7)
    assert (white[~MASK] == 0).all()
    kept = ppo.whiten(padded(rows), MASK, keep_mean=True)
    torch.testing.assert_close(kept[MASK], (flat(rows) - mean) / deviation + mean, rtol=1e-7, atol=1e-7)
    assert (ppo.whiten(torch.full((2, 2), 3.0), torch.ones(2, 2, dtype=torch.bool)) == 0).all()


def test_rewards_have_the_kl_at_each_token_and_the_score_at_the_last() -> None:
    logprobs, reference, scores, beta = table(2), table(3), [1.0, -2.0, 0.5, 3.0], 0.3
    rewards = ppo.token_rewards(
        torch.tensor(scores, dtype=torch.float64), padded(logprobs) - padded(reference, 7.0), MASK, beta
    )
    for row, length in enumerate(LENGTHS):
        for at in range(WIDTH):
            expected = 0.0
            if at < length:
                expected = -beta * (logprobs[row][at] - reference[row][at]) + (scores[row] if at == length - 1 else 0.0)
            assert float(rewards[row, at]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_generalised_advantages(gamma: float, lam: float) -> None:
    rewards, values = table(4), table(5)
    advantages, returns = ppo.advantages_and_returns(padded(rewards), padded(values), MASK, gamma=gamma, lam=lam)
    for row, length in enumerate(LENGTHS):
        for at in range(length):
            # Equation 16 as it stands: the discounted sum of the temporal differences to come.
            expected = 0.0
            for later in range(at, length):
                after = values[row][later + 1] if later + 1 < length else 0.0
                difference = rewards[row][later] + gamma * after - values[row][later]
                expected += (gamma * lam) ** (later - at) * difference
            assert float(advantages[row, at]) == pytest.approx(expected, rel=1e-12)
            assert float(returns[row, at]) == pytest.approx(expected + values[row][at], rel=1e-12)
    assert (advantages[~MASK] == 0).all()
    assert (returns[~MASK] == 0).all()


def test_with_lambda_one_the_returns_are_the_discounted_rewards() -> None:
    rewards, values = table(6), table(7)
    _, returns = ppo.advantages_and_returns(padded(rewards), padded(values), MASK, gamma=0.8, lam=1.0)
    for row, length in enumerate(LENGTHS):
        total = sum(0.8**at * rewards[row][at] for at in range(length))
        assert float(returns[row, 0]) == pytest.approx(total, rel=1e-12)


def test_the_policy_loss() -> None:
    new, old, advantages, clip = table(8, 0.3), table(9, 0.3), table(10), 0.2
    total = clipped = kl = 0.0
    for row, length in enumerate(LENGTHS):
        for at in range(length):
            ratio, advantage = math.exp(new[row][at] - old[row][at]), advantages[row][at]
            held = min(max(ratio, 1 - clip), 1 + clip)
            total += max(-advantage * ratio, -advantage * held)
            clipped += -advantage * held > -advantage * ratio
            kl += ratio - 1 - (new[row][at] - old[row][at])
    found = ppo.policy_loss(flat(new), flat(old), flat(advantages), clip)
    assert float(found.loss) == pytest.approx(total, rel=1e-12)
    assert int(found.clipped) == clipped > 0
    assert float(found.kl) == pytest.approx(kl, rel=1e-12)


def test_a_clipped_token_has_no_gradient_and_a_free_one_that_of_the_policy_gradient() -> None:
    old = torch.zeros(4, dtype=torch.float64)
    new = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    ppo.policy_loss(new, old, advantages, 0.2).loss.backward()
    # Raised though good: held. Raised though bad, lowered though good: free. Lowered and bad: held.
    expected = [0.0, math.exp(0.5), -math.exp(-0.5), 0.0]
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_loss(clip: float | None) -> None:
    values, old, returns = table(11), table(12), table(13)
    total = clipped = 0.0
    for row, length in enumerate(LENGTHS):
        for at in range(length):
            free = (values[row][at] - returns[row][at]) ** 2
            held = free
            if clip is not None:
                moved = min(max(values[row][at] - old[row][at], -clip), clip)
                held = (old[row][at] + moved - returns[row][at]) ** 2
            total += 0.5 * max(free, held)
            clipped += held > free
    found = ppo.value_loss(flat(values), flat(old), flat(returns), clip)
    assert float(found.loss) == pytest.approx(total, rel=1e-12)
    assert int(found.clipped) == clipped


def test_explained_variance() -> None:
    returns = padded(table(14))
    assert ppo.explained_variance(returns, returns, MASK) == 1.0
    assert ppo.explained_variance(torch.zeros_like(returns), returns, MASK) == pytest.approx(0.0, abs=1e-12)
    assert ppo.explained_variance(-returns, returns, MASK) == pytest.approx(-3.0, rel=1e-9)
    assert ppo.explained_variance(returns, torch.ones_like(returns), MASK) == 0.0


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (6.6, 0.1 * 1.01), (60.0, 0.1 * 1.02), (5.4, 0.1 * 0.99), (0.0, 0.1 * 0.98), (-3.0, 0.1 * 0.98)],
)
def test_the_controller_moves_by_two_per_cent_at_the_most(kl: float, expected: float) -> None:
    assert ppo.next_coefficient(0.1, kl, 6.0) == pytest.approx(expected, rel=1e-12)


def test_a_rewards_scale_does_not_change_whitened_advantages() -> None:
    rewards: Any = padded(table(15), 0.0)
    values = torch.zeros_like(rewards)
    first, _ = ppo.advantages_and_returns(rewards, values, MASK, gamma=1.0, lam=0.9)
    second, _ = ppo.advantages_and_returns(10 * rewards, values, MASK, gamma=1.0, lam=0.9)
    torch.testing.assert_close(ppo.whiten(first, MASK), ppo.whiten(second, MASK), rtol=1e-6, atol=1e-6)
