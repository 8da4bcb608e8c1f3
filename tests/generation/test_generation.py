"""Answers in batches: those of each prompt alone, cut at the end token, drawn as `Sampling` says, not as the model does."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from luthier.core.errors import Interrupted, LuthierError
from luthier.core.generation import Sampling, cut, end_tokens, evaluating, generate, pad_left

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [40, 41]]


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float64)
    # Logits far apart: sampling at temperature 1 would otherwise be nearly uniform.
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(20)
    return made


def greedy_by_hand(model: Any, prompt: list[int], new_tokens: int, ends: tuple[int, ...]) -> list[int]:
    """Without cache, padding and batches."""
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_tokens", [1, 24, 1000])
def test_greedy_answers_are_those_of_each_prompt_alone(model: Any, tiny_tokenizer: Any, batch_tokens: int) -> None:
    answers = generate(model, tiny_tokenizer, PROMPTS, Sampling(max_new_tokens=6, temperature=0), batch_tokens=batch_tokens)
    ends = end_tokens(model, tiny_tokenizer)
    assert [answer.ids for answer in answers] == [greedy_by_hand(model, prompt, 6, ends) for prompt in PROMPTS]


def test_what_the_model_says_about_sampling_does_not_count(model: Any, tiny_tokenizer: Any) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0)
    plain = generate(model, tiny_tokenizer, PROMPTS, sampling, batch_tokens=1000)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=own.eos_token_id, repetition_penalty=9.0, no_repeat_ngram_size=1, min_length=30
    )
    try:
        again = generate(model, tiny_tokenizer, PROMPTS, sampling, batch_tokens=1000)
        assert model.generation_config.repetition_penalty == 9.0
    finally:
        model.generation_config = own
    assert again == plain


def test_sampling_follows_the_distribution(model: Any, tiny_tokenizer: Any) -> None:
    """One token, drawn 4000 times: frequencies within five standard deviations of softmax(logits / temperature)."""
    draws, temperature = 4000, 2.0
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, dim=-1)
    torch.manual_seed(0)
    sampling = Sampling(max_new_tokens=1, temperature=temperature)
    answers = generate(model, tiny_tokenizer, [PROMPTS[0]] * draws, sampling, batch_tokens=24_000)
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in answers]), minlength=len(expected))
    likely = expected > 0.01
    error = (counts / draws - expected)[likely].abs() / (expected * (1 - expected) / draws).sqrt()[likely]
    assert int(likely.sum()) > 1
    assert float(error.max()) < 5


def test_the_same_seed_draws_the_same_answers(model: Any, tiny_tokenizer: Any) -> None:
    def drawn(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        answers = generate(model, tiny_tokenizer, PROMPTS, Sampling(max_new_tokens=8, temperature=3), batch_tokens=1000)
        return [answer.ids for answer in answers]

    assert drawn(1) == drawn(1) != drawn(2)


def test_an_answer_has_at_least_the_tokens_asked_for(model: Any, tiny_tokenizer: Any) -> None:
    end = end_tokens(model, tiny_tokenizer)[0]
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        before = head.clone()
        head.zero_()
    try:
        sampling = Sampling(max_new_tokens=12, min_new_tokens=4)
        torch.manual_seed(0)
        answers = generate(model, tiny_tokenizer, PROMPTS * 20, sampling, batch_tokens=4000)
    finally:
        with torch.no_grad():
            head.copy_(before)
    assert all(end not in answer.ids[:4] for answer in answers)


def test_cut_keeps_the_end_token_and_says_whether_there_was_one() -> None:
    assert cut([7, 8, 2, 9, 2], (2, 3)).ids == [7, 8, 2]
    assert cut([7, 8, 2, 9, 2], (2, 3)).finished
    assert cut([7, 8], (2, 3)).ids == [7, 8]
    assert not cut([7, 8], (2, 3)).finished


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = pad_left([[1, 2, 3], [4]], 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_each_module_gets_its_mode_back(model: Any) -> None:
    model.train()
    frozen = next(module for name, module in model.named_modules() if name.endswith("layers.0"))
    frozen.eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert model.training
    assert not frozen.training
    model.eval()


def test_a_stop_ends_it(model: Any, tiny_tokenizer: Any) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        generate(model, tiny_tokenizer, PROMPTS, Sampling(max_new_tokens=4), batch_tokens=1000, stop=stop)


def test_an_empty_prompt_and_an_impossible_range_are_refused(model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(LuthierError, match="prompt 1 has no tokens"):
        generate(model, tiny_tokenizer, [[5], []], Sampling(max_new_tokens=4), batch_tokens=1000)
    with pytest.raises(ValueError, match="no range"):
        Sampling(max_new_tokens=4, min_new_tokens=5)
    with pytest.raises(ValueError, match="top_p"):
        Sampling(max_new_tokens=4, top_p=0)
