"""Reasoning: what Qwen 3 and DeepSeek R1 write of it, and that an answer whose reasoning would vanish is not learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from luthier.core.config.schema import DataConfig, SourceConfig
from luthier.core.data.encode import Encoded, make_encoder
from luthier.core.data.sources import SourceRow
from luthier.core.errors import DataError
from luthier.core.frozen import FrozenDict

ASK = {"role": "user", "content": "7 * 6?"}
THOUGHT = {"role": "assistant", "content": "42", "reasoning_content": "Seven sixes."}
AGAIN = {"role": "user", "content": "And 7 * 7?"}
SECOND = {"role": "assistant", "content": "49", "reasoning_content": "Seven sevens."}
TALK = [ASK, THOUGHT, AGAIN, SECOND]
# llama.cpp models/templates/Qwen-Qwen3-0.6B.jinja: equal. The last answer with its thinking, earlier ones without.
QWEN_LAST = (
    "<|im_start|>user\n7 * 6?<|im_end|>\n<|im_start|>assistant\n42<|im_end|>\n<|im_start|>user\nAnd 7 * 7?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\nSeven sevens.\n</think>\n\n49<|im_end|>\n"
)
QWEN_ALL = QWEN_LAST.replace("assistant\n42", "assistant\n<think>\nSeven sixes.\n</think>\n\n42")
# llama.cpp models/templates/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja: prompts, to "<think>\n", and earlier answers
# equal. It drops the thinking of the last answer as well: what is learned has no original but the model's own output.
R1_LAST = (
    "<s><｜User｜>7 * 6?<｜Assistant｜>42</s><｜User｜>And 7 * 7?<｜Assistant｜><think>\nSeven sevens.\n</think>\n\n49</s>"
)
R1_ALL = R1_LAST.replace("<｜Assistant｜>42", "<｜Assistant｜><think>\nSeven sixes.\n</think>\n\n42")


def learned(tokenizer: Any, messages: list[dict[str, Any]], train_on: str = "assistant", **options: Any) -> str:
    """The learned text of one conversation, by the encoder."""
    source = SourceConfig(path="rows.jsonl")
    data = DataConfig(train=(source,), train_on=train_on, template_options=FrozenDict(options))  # type: ignore[arg-type]
    row = {"messages": messages}
    found: list[Encoded] = make_encoder(tokenizer, data, "conversation").encode(
        [(SourceRow(Path("rows.jsonl"), 7, row), row)]
    )
    (piece,) = found[0].pieces
    return str(tokenizer.decode([token for token, mark in zip(piece.ids, piece.trained, strict=True) if mark]))


@pytest.mark.parametrize(("name", "last", "everything"), [("qwen3", QWEN_LAST, QWEN_ALL), ("deepseek-r1", R1_LAST, R1_ALL)])
def test_earlier_thinking_is_left_out_unless_it_is_preserved(
    name: str, last: str, everything: str, family: Callable[..., Any]
) -> None:
    tokenizer = family(name)
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == last
    assert tokenizer.apply_chat_template(TALK, tokenize=False, preserve_thinking=True) == everything


@pytest.mark.parametrize(("name", "stop"), [("qwen3", "<|im_end|>"), ("deepseek-r1", "</s>")])
def test_what_is_learned_of_reasoning(name: str, stop: str, family: Callable[..., Any]) -> None:
    tokenizer = family(name)
    start = "<think>\n" if name == "qwen3" else ""  # R1's prompt writes it
    second = f"{start}Seven sevens.\n</think>\n\n49{stop}"
    assert learned(tokenizer, [AGAIN, SECOND]) == second
    # Under `last` the earlier answer is a prompt, written as inference writes it: without its thinking.
    assert learned(tokenizer, TALK, "last") == second
    first = f"{start}Seven sixes.\n</think>\n\n42{stop}"
    assert learned(tokenizer, TALK, preserve_thinking=True) == first + second


@pytest.mark.parametrize("name", ["qwen3", "deepseek-r1"])
def test_an_earlier_answer_whose_reasoning_would_vanish_is_refused_by_row_and_turn(
    name: str, family: Callable[..., Any]
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:7.*assistant turn 1 \(messages\[1\]\)"):
        learned(family(name), TALK)


def test_reasoning_inside_the_content_is_taken_out_of_it(family: Callable[..., Any]) -> None:
    inside = {"role": "assistant", "content": "<think>\nSeven sevens.\n</think>\n\n49"}
    qwen, r1 = family("qwen3"), family("deepseek-r1")
    assert (
        qwen.apply_chat_template([ASK, {"role": "assistant", "content": "42"}, AGAIN, inside], tokenize=False) == QWEN_LAST
    )
    assert r1.apply_chat_template([*TALK[:3], inside], tokenize=False) == R1_LAST
    # Of an earlier answer it would vanish from what is learned, and no one could tell.
    earlier = [ASK, inside, AGAIN, SECOND]
    with pytest.raises(TemplateError, match=r"messages\[1\]"):
        qwen.apply_chat_template(earlier, tokenize=False)
    assert "Seven" not in qwen.apply_chat_template(earlier[:3], tokenize=False, add_generation_prompt=True)


def test_thinking_between_tool_calls_of_one_question_is_kept(family: Callable[..., Any]) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        ASK,
        {"role": "assistant", "content": "", "reasoning_content": "I had better ask.", "tool_calls": [call]},
        {"role": "tool", "content": "42"},
        THOUGHT,
    ]
    assert learned(family("qwen3"), messages) == (
        '<think>\nI had better ask.\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'
        "<think>\nSeven sixes.\n</think>\n\n42<|im_end|>"
    )


def test_without_thinking_the_empty_thought_belongs_to_every_prompt(family: Callable[..., Any]) -> None:
    tokenizer = family("qwen3")
    plain = [ASK, {"role": "assistant", "content": "42"}, AGAIN, {"role": "assistant", "content": "49"}]
    prompt = tokenizer.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    # llama.cpp models/templates/Qwen-Qwen3-0.6B.jinja with enable_thinking=False: equal
    assert prompt == "<|im_start|>user\n7 * 6?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert learned(tokenizer, plain, enable_thinking=False) == "42<|im_end|>49<|im_end|>"
    with pytest.raises(DataError, match=r"rows\.jsonl:7"):
        learned(tokenizer, [ASK, THOUGHT], enable_thinking=False)
