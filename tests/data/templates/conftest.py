"""Fixtures of the templates' tests: a tokenizer with a family's own special tokens, and conversations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.data.templates import ChatTemplate, named_templates
from luthier.core.testing.models import tiny_tokenizer

Messages = list[dict[str, Any]]


def tokenizer_for(template: ChatTemplate, bos: str = "<s>", eos: str = "</s>") -> Any:
    """The tiny tokenizer with this bos and eos, every token of the template, and the template."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"bos_token": bos, "eos_token": eos})
    tokenizer.add_special_tokens({"additional_special_tokens": list(template.special_tokens)})
    tokenizer.chat_template = template.text
    return tokenizer


@pytest.fixture
def family() -> Callable[..., Any]:
    """`family("qwen3", bos="<s>", eos="</s>")`: a tokenizer that has the template and its tokens."""

    def make(name: str, bos: str = "<s>", eos: str = "</s>") -> Any:
        return tokenizer_for(named_templates()[name], bos, eos)

    return make


@pytest.fixture
def turns() -> Callable[..., Messages]:
    """`turns("a", "b", "c", system="s")`: user, assistant, user, ... with a system message before them."""

    def make(*contents: str, system: str | None = None) -> Messages:
        first = [] if system is None else [{"role": "system", "content": system}]
        roles = ("user", "assistant")
        return first + [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]

    return make
