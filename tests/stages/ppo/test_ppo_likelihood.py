"""Log-probabilities and entropies of tokens, and their gradients, against torch's own log-softmax in float64."""

from __future__ import annotations

import pytest
import torch

from luthier.plugins.ppo import likelihood
from luthier.plugins.ppo.likelihood import token_statistics


def plain(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float, banned: list[int], ends: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, one row at a time: a banned token is left out of the softmax."""
    logprobs, entropies = [], []
    for row, token in enumerate(tokens.tolist()):
        keep = [word for word in range(logits.shape[1]) if not (row in banned and word in ends)]
        log_p = torch.log_softmax(logits[row, keep] / temperature, dim=0)
        logprobs.append(log_p[keep.index(token)])
        entropies.append(-(log_p.exp() * log_p).sum())
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("banned", [[], [0, 5]])
def test_values_and_gradients(temperature: float, banned: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "ROWS", 3)
    torch.manual_seed(0)
    logits = torch.randn(8, 11, dtype=torch.float64) * 3
    tokens, ends = torch.tensor([0, 4, 7, 10, 2, 6, 9, 9]), [1, 9]
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    marks = torch.tensor([row in banned for row in range(8)])
    found = token_statistics(first, tokens, temperature=temperature, banned=marks, ends=torch.tensor(ends))
    expected = plain(second, tokens, temperature, banned, ends)
    weights = torch.randn(2, 8, dtype=torch.float64)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    (weights[0] @ found[0] + weights[1] @ found[1]).backward()
    (weights[0] @ expected[0] + weights[1] @ expected[1]).backward()
    assert first.grad is not None
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-10, atol=1e-12)


def test_one_of_the_two_is_enough() -> None:
    torch.manual_seed(0)
    for which in (0, 1):
        logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
        other = logits.detach().clone().requires_grad_()
        tokens = torch.tensor([0, 1, 2, 3, 6])
        token_statistics(logits, tokens, temperature=1.0)[which].sum().backward()
        plain(other, tokens, 1.0, [], [])[which].sum().backward()
        torch.testing.assert_close(logits.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_narrow_logits_are_computed_in_float32_and_get_a_gradient_of_their_own_format() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(4, 300) * 2).bfloat16().requires_grad_()
    tokens = torch.tensor([3, 299, 0, 7])
    logprobs, entropy = token_statistics(logits, tokens, temperature=1.0)
    expected = plain(logits.detach().double(), tokens, 1.0, [], [])
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=1e-6, atol=1e-5)
    logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_only_the_logits_are_kept_for_the_backward_pass() -> None:
    """What torch's log-softmax would keep besides is as large as the logits, and the largest tensor of an update."""
    logits = torch.randn(1000, 50, requires_grad=True)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_statistics(logits, torch.zeros(1000, dtype=torch.int64), temperature=1.0)
    large = [tensor for tensor in kept if tensor.numel() >= logits.numel()]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]
