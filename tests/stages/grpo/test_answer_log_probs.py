"""Log-probabilities of answers: as of each row alone, without padding, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from luthier.core.testing.models import tiny_model
from luthier.plugins._trl.answer_log_probs import answer_log_probs

PROMPTS, ANSWERS = (3, 6, 1, 4), (5, 2, 4, 0)


def batch(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), (4, 6 + 5): prompts padded on the left, answers on the right; the last row has no answer."""
    random = torch.Generator().manual_seed(0)
    ids, mask = torch.zeros(4, 11, dtype=torch.long), torch.zeros(4, 11, dtype=torch.long)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids[row, 6 - prompt : 6 + answer] = torch.randint(3, vocabulary, (prompt + answer,), generator=random)
        mask[row, 6 - prompt : 6 + answer] = 1
    return ids, mask


def expected(model: Any, ids: torch.Tensor, mask: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row, unpadded, in float64."""
    exact = copy.deepcopy(model).double().eval()
    log_probs, entropies = torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        if not answer:
            continue
        alone = ids[row][mask[row].bool()][None]
        logits = exact(input_ids=alone).logits[0, prompt - 1 : prompt + answer - 1] / temperature
        normalised = logits.log_softmax(-1)
        log_probs[row, :answer] = normalised.gather(-1, alone[0, prompt:, None])[:, 0]
        entropies[row, :answer] = torch.distributions.Categorical(logits=logits).entropy()
    return log_probs, entropies


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_as_of_each_row_alone(kind: str, temperature: float) -> None:
    model = tiny_model(kind).load().eval()
    ids, mask = batch(200)
    want, want_entropies = expected(model, ids, mask, temperature)
    for size in (None, 1, 3):
        got, entropies = answer_log_probs(model, ids, mask, 5, temperature=temperature, batch_size=size, entropy=True)
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), want, atol=1e-5)
        assert entropies is not None
        assert torch.allclose(entropies.double(), want_entropies, atol=1e-5)
        assert not entropies.requires_grad
        assert not got[1, 2:].any()
        assert not got[3].any()


def test_gradients_are_those_of_the_rows_alone() -> None:
    model = tiny_model("llama").load().train()
    ids, mask = batch(200)
    got, none = answer_log_probs(model, ids, mask, 5)
    assert none is None
    weights = torch.linspace(-1, 1, 20).view(4, 5)
    (got * weights).sum().backward()
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        alone = ids[row][mask[row].bool()][None]
        normalised = exact(input_ids=alone).logits[0, prompt - 1 : prompt + answer - 1].log_softmax(-1)
        total = total + (normalised.gather(-1, alone[0, prompt:, None])[:, 0] * weights[row, :answer].double()).sum()
    total.backward()
    for (name, one), (_, other) in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        assert torch.allclose(one.grad.double(), other.grad, atol=1e-5), name


def test_a_model_that_gives_all_logits_is_the_same() -> None:
    model = tiny_model("llama").load().eval()

    class Whole(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return model(input_ids=input_ids, attention_mask=attention_mask)

    ids, mask = batch(200)
    assert torch.equal(answer_log_probs(Whole(), ids, mask, 5)[0], answer_log_probs(model, ids, mask, 5)[0])


def test_nothing_was_answered() -> None:
    ids, mask = batch(200)
    got, entropies = answer_log_probs(tiny_model("llama").load(), ids[3:], mask[3:], 5, entropy=True)
    assert not got.any()
    assert entropies is not None
    assert not entropies.any()
