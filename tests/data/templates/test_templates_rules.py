"""What holds for every named template: prompts are prefixes, answers are marked to their end, and nothing is left out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from jinja2 import TemplateError

from luthier.core.data.templates import ChatTemplate, end_of_turn, named_templates

NAMES = sorted(named_templates())
CONVERSATIONS = {
    "one turn": ("What is 7 * 6?", "It is 42."),
    "three turns": ("eins", "zwei", "drei vier", "fünf\n\nsechs", "sieben", "acht"),
    "brackets": ("<b>bold</b> {{ x }}", "{% raw %} & 'quotes' \"double\"", "again", "[1, 2] \\n"),
}
# Only the thinking of a last answer is kept, so only that answer continues its prompt: see test_templates_thinking.py.
ONE_ANSWER = {"deepseek-r1"}


def conversations(template: ChatTemplate) -> list[list[dict[str, Any]]]:
    found = []
    for contents in CONVERSATIONS.values():
        if template.name in ONE_ANSWER and len(contents) > 2:
            continue
        messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]
        found.append(messages)
        if template.system != "none":
            found.append([{"role": "system", "content": "Answer briefly, please."}, *messages])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_of_every_answer_is_a_prefix_and_the_answer_is_marked_to_its_end(
    name: str, family: Callable[..., Any]
) -> None:
    template = named_templates()[name]
    tokenizer = family(name)
    stop = template.stop or "</s>"
    for messages in conversations(template):
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        prompts = [
            tokenizer.apply_chat_template(messages[:at], tokenize=False, add_generation_prompt=True) for at in answers
        ]
        assert all(whole.startswith(prompt) for prompt in prompts)
        # What is marked begins where the prompt ends, and is the answer and its end-of-turn token.
        marked = marked_texts(tokenizer, messages)
        assert len(marked) == len(answers)
        for prompt, text, at in zip(prompts, marked, answers, strict=True):
            assert whole[len(prompt) :].startswith(text)
            assert text.endswith(stop)
            thought = "\n</think>\n\n" if name == "deepseek-r1" else ""
            thought = "<think>\n\n</think>\n\n" if name == "qwen3" and at == len(messages) - 1 else thought
            assert text.removesuffix(stop).strip() == (thought + messages[at]["content"]).strip()


def marked_texts(tokenizer: Any, messages: list[dict[str, Any]]) -> list[str]:
    """The text of every run of tokens that transformers' assistant mask marks."""
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    mask, ids = [0, *encoded["assistant_masks"], 0], encoded["input_ids"]
    edges = [at for at, (left, right) in enumerate(pairwise(mask)) if left != right]
    return [tokenizer.decode(ids[begin:end]) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_every_content_stands_in_the_text_once(name: str, family: Callable[..., Any]) -> None:
    template = named_templates()[name]
    words = ("Quark", "Zebra") if name in ONE_ANSWER else ("Quark", "Zebra", "Xylophon", "Kiwi", "Yucca", "Joghurt")
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(words)]
    if template.system != "none":
        messages.insert(0, {"role": "system", "content": "Violine"})
    written = family(name).apply_chat_template(messages, tokenize=False)
    assert [written.count(message["content"]) for message in messages] == [1] * len(messages)


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_are_those_of_the_text(name: str, family: Callable[..., Any]) -> None:
    template = named_templates()[name]
    assert end_of_turn(family(name)) == (template.stop or "</s>")
    assert template.bos == ("bos_token" in template.text)
    assert (not template.stop) == ("eos_token" in template.text)
    assert all(option in template.text for option in template.options)
    written = family(name).apply_chat_template(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], tokenize=False
    )
    assert written.startswith("<s>") == template.bos
    assert template.summary.endswith(".")


CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_family_cannot_say_is_refused(name: str, family: Callable[..., Any]) -> None:
    template, tokenizer = named_templates()[name], family(name)

    def refused(messages: list[dict[str, Any]], **more: Any) -> bool:
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, **more)
        except TemplateError as error:
            return name in str(error)
        return False

    assert not refused([USER, ANSWER])
    assert refused([{"role": "critic", "content": "c"}, USER])
    assert refused([USER, {"role": "system", "content": "late"}, ANSWER])
    assert refused([{"role": "system", "content": "s"}, USER, ANSWER]) == (template.system == "none")
    assert refused([USER, ANSWER], tools=[TOOL]) != template.tools
    assert refused([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}], tools=[TOOL]) != template.tools
    assert refused([USER, ANSWER | {"reasoning_content": "r"}]) != template.thinking
    assert refused([USER, USER, ANSWER]) == template.alternates
    if template.system == "in the first question" or template.tools:
        assert refused([ANSWER, USER])
