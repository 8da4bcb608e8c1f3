"""Exact match, and batched generation against a plain loop without cache, padding or batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.demo.score import answer, is_exact, score
from luthier.demo.task import examples

WANTED = '{"intent":"set_timer","duration":10,"unit":"minutes"}'


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        (WANTED, True),
        ('{"unit": "minutes", "intent": "set_timer",\n "duration": 10}', True),
        ('{"intent":"set_timer","duration":"10","unit":"minutes"}', False),
        ('{"intent":"set_timer","duration":10.0,"unit":"minutes"}', False),
        ('{"intent":"set_timer","duration":10}', False),
        (WANTED + " Done.", False),
        (WANTED[:-1], False),
        ("Sure! " + WANTED, False),
        ("", False),
        ("[" * 100_000, False),
    ],
)
def test_exact_means_the_whole_answer_is_the_same_json(given: str, exact: bool) -> None:
    assert is_exact(given, WANTED) is exact


@pytest.fixture
def loaded(tiny_folder: Callable[..., Path]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_folder("llama")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def greedy(model: Any, ids: list[int], count: int, end: int) -> list[int]:
    """Argmax of the last position, one conversation at a time, from scratch for each token."""
    import torch

    made: list[int] = []
    with torch.no_grad():
        while len(made) < count and end not in made:
            made.append(int(model(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax()))
    return made


def test_batched_answers_equal_a_plain_loop_and_stop_at_the_end_of_the_turn(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    conversations = [example.row()["messages"][:-1] for example in examples("held_out", 7)]
    prompts = [
        tokenizer(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False), add_special_tokens=False)
        for turns in conversations
    ]
    prompts = [prompt["input_ids"] for prompt in prompts]
    assert len({len(prompt) for prompt in prompts}) > 1, "without different lengths nothing is padded"
    # A random model seldom ends a turn: let the end be a token that one of the answers has in its middle.
    free = [greedy(model, prompt, 12, end=-1) for prompt in prompts]
    end = next(token for tokens in free for token in tokens[3:6] if token not in tokens[:3])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    wanted = []
    for prompt in prompts:
        tokens = greedy(model, prompt, 12, end)
        cut = tokens.index(end) if end in tokens else len(tokens)
        wanted.append(tokenizer.decode(tokens[:cut], skip_special_tokens=True).strip())

    model.train()
    assert answer(model, tokenizer, conversations, max_new_tokens=12, batch_size=3) == wanted
    assert model.training
    assert len(set(map(len, wanted))) > 1


def test_score_counts_exact_answers(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.demo import score as module

    rows = examples("held_out", 4)
    given = [rows[0].command, "no", rows[2].command, rows[0].command]
    monkeypatch.setattr(module, "answer", lambda *_, **__: given)
    scored = score(*loaded, rows)
    assert scored.exact == (True, False, True, False)
    assert scored.rate == 0.5
    with pytest.raises(ValueError, match="no examples"):
        score(*loaded, [])
