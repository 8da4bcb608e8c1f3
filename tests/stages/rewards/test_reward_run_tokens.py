"""A reward model reads of a sampled answer what it would have read of it in training: nothing after the end of the turn."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.rewards.runs import RewardModel, closing_tokens
from luthier.core.rewards.scoring import Scored

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Model:
    config: Any = None


@pytest.fixture
def tokenizer(tiny_tokenizer: Any) -> Any:
    """One whose template writes a line break after the end of each turn, which is another token than `eos_token`."""
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tiny_tokenizer.chat_template = CHATML
    assert tiny_tokenizer.eos_token != "<|im_end|>"
    return tiny_tokenizer


def answer(tokenizer: Any, *, finished: bool) -> Scored:
    messages = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer("Yes", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return Scored(
        prompt=prompt, text="Yes", ids=[*ids, end] if finished else ids,
        prompt_ids=tokenizer(prompt, add_special_tokens=False)["input_ids"],
        finished=finished, reference=None, row=0, messages=messages,
    )  # fmt: skip


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_it_ends_with_the_turn_where_the_answer_did(
    tokenizer: Any, finished: bool, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.core.rewards.runs.same_texts", lambda *_: same)
    judge = RewardModel("run", Model(), tokenizer, policy=tokenizer, batch_tokens=64)
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes" + "<|im_end|>" * finished
    assert tokenizer.decode(judge.tokens(answer(tokenizer, finished=finished)), skip_special_tokens=False) == expected


def test_a_template_without_an_end_of_turn_closes_as_it_does(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] + '.' }}{% endfor %}"
    assert tokenizer.decode(closing_tokens(tokenizer)) == "."
