"""A row's score is that of the row: it does not depend on the rows beside it, nor on what pads them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from luthier.core.data.collate import collate
from luthier.core.data.examples import Example
from luthier.core.score_head import pad_apart, pad_with
from luthier.core.testing.models import KINDS, tiny_model, tiny_tokenizer

Load = Callable[..., Any]


def example(ids: list[int]) -> Example:
    row = torch.tensor(ids).numpy()
    return {"input_ids": row, "labels": row}


def scores(model: Any, rows: list[list[int]], pad: int) -> torch.Tensor:
    batch = collate([example(row) for row in rows], pad)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    return found


def at_each_token(model: Any, row: list[int]) -> torch.Tensor:
    """The head's number behind every token, in float64, from the decoder alone."""
    with torch.no_grad():
        hidden = getattr(model, model.base_model_prefix)(torch.tensor([row])).last_hidden_state
    return (hidden[0].double() @ model.score.weight.double().T)[:, 0].detach()


def padding_with_the_end_token() -> Any:
    """A tokenizer that pads with the token that ends an answer, as many do."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_alone_and_in_a_batch(kind: str, load: Load) -> None:
    """Of four rows of different length, and each of them alone, without padding."""
    tokenizer = tiny_tokenizer()
    model = load(tiny_model(kind))
    end, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    rows = [[5, 6, 7, end], [1, 2, 3, 4, 5, 6, 7, 8, 9, end], [30, end], [9] * 25]
    together = scores(model, rows, pad)
    for number, row in enumerate(rows):
        assert torch.allclose(together[number].double(), at_each_token(model, row)[-1], atol=1e-5)
        assert torch.allclose(together[number], scores(model, [row], pad)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_where_the_end_token_pads_the_score_is_read_before_it(kind: str, load: Load) -> None:
    """A row that ends with it, one that ends with two, and one that does not: all read at the last other token."""
    tokenizer = padding_with_the_end_token()
    model = load(tiny_model(kind))
    remark = pad_with(model, tokenizer)
    assert "<eos> ends an answer and pads a batch" in remark
    end = int(tokenizer.eos_token_id)
    row = [5, 6, 7, 8]
    expected = at_each_token(model, row)[-1]
    long = [3] * 20
    for ended in (row, [*row, end], [*row, end, end]):
        for rows in ([ended], [ended, long]):
            assert torch.allclose(scores(model, rows, end)[0].double(), expected, atol=1e-5)


def test_the_unknown_token_pads_where_the_end_token_would(load: Load) -> None:
    """Then a row that ends is read at its end, alone and beside a longer one. Without an unknown token nothing changes."""
    tokenizer = padding_with_the_end_token()
    assert pad_apart(tokenizer) == ""
    assert tokenizer.pad_token == tokenizer.eos_token
    tokenizer.add_special_tokens({"unk_token": "<pad>"})
    assert "<pad> instead of <eos>" in pad_apart(tokenizer)
    model = load(tiny_model("llama"))
    assert pad_with(model, tokenizer) == ""
    row = [5, 6, 7, int(tokenizer.eos_token_id)]
    for rows in ([row], [row, [3] * 20]):
        assert torch.allclose(
            scores(model, rows, tokenizer.pad_token_id)[0].double(), at_each_token(model, row)[-1], atol=1e-5
        )
    assert pad_apart(tokenizer) == ""


def test_an_unknown_token_that_has_another_part_does_not_pad() -> None:
    tokenizer = padding_with_the_end_token()
    tokenizer.add_special_tokens({"unk_token": tokenizer.bos_token})
    assert pad_apart(tokenizer) == ""
    assert tokenizer.pad_token == tokenizer.eos_token


def test_a_padding_token_of_its_own_says_nothing(load: Load) -> None:
    """There the end token is read like any other, and a row that ends scores otherwise than one that does not."""
    tokenizer = tiny_tokenizer()
    model = load(tiny_model("llama"))
    assert pad_with(model, tokenizer) == ""
    end, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
    cut, ended = scores(model, [[5, 6, 7], [5, 6, 7, end]], pad)
    assert abs(float(cut - ended)) > 1e-4


def test_the_model_is_told_what_pads(load: Load) -> None:
    model = load(tiny_model("llama"))
    model.config.pad_token_id = None
    pad_with(model, tiny_tokenizer())
    assert model.config.pad_token_id == model.config.get_text_config().pad_token_id == tiny_tokenizer().pad_token_id
