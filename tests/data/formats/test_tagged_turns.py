"""core/tagged.py: ShareGPT messages as plain ones, under the tags of LLaMA-Factory and under others."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.core.tagged import Tags, tagged_turns

CALL = '{"name": "weather", "arguments": {"town": "Ulm"}}'
CALLED = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}


def test_the_default_tags() -> None:
    given = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Warm?"},
        {"from": "function_call", "value": CALL},
        {"from": "observation", "value": "21"},
        {"from": "gpt", "value": "Yes."},
    ]
    assert tagged_turns(given, "conversations", Tags()) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Warm?"},
        {"role": "assistant", "content": "", "tool_calls": [CALLED]},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "Yes."},
    ]


def test_tags_of_ones_own() -> None:
    tags = Tags(role_tag="who", content_tag="what", user_tag="Ann", assistant_tag="Bob")
    given = [{"who": "Ann", "what": "Hi"}, {"who": "Bob", "what": "Hello!"}]
    assert [turn["role"] for turn in tagged_turns(given, "c", tags)] == ["user", "assistant"]


def test_a_tag_of_ones_own_wins_over_a_known_one() -> None:
    tags = Tags(user_tag="gpt", assistant_tag="human")
    given = [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "Hello!"}]
    assert [turn["role"] for turn in tagged_turns(given, "c", tags)] == ["user", "assistant"]


def test_messages_of_chat_apis_keep_what_they_have() -> None:
    given = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!", "reasoning_content": "Greet."}]
    assert tagged_turns(given, "c", Tags()) == given


def test_several_calls_at_once_and_arguments_as_text() -> None:
    both = '[{"name": "weather", "arguments": "{\\"town\\": \\"Ulm\\"}"}, {"name": "time"}]'
    (turn,) = tagged_turns([{"from": "function_call", "value": both}], "c", Tags())
    assert turn["tool_calls"] == [CALLED, {"type": "function", "function": {"name": "time", "arguments": {}}}]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"weight": 0.0}, {"weight": 0.0}),
        ({"loss": False}, {"train": False}),
        ({"loss": True}, {"train": True}),
        ({"train": False}, {"train": False}),
        ({"weight": None, "loss": None, "id": 7}, {}),
    ],
)
def test_an_answer_keeps_whether_it_is_learned(said: dict[str, Any], kept: dict[str, Any]) -> None:
    given = [{"from": "human", "value": "Hi", **said}, {"from": "gpt", "value": "Hello!", **said}]
    given.append({"from": "function_call", "value": CALL, **said})
    assert tagged_turns(given, "c", Tags()) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!", **kept},
        {"role": "assistant", "content": "", "tool_calls": [CALLED], **kept},
    ]


@pytest.mark.parametrize(
    ("value", "column", "words"),
    [
        ("Hi", "c", "must be a list of messages, not a string"),
        ([], "c", "there are no messages"),
        (["Hi"], "c[0]", "must be an object with from and value"),
        ([{"value": "Hi"}], "c[0].from", "is missing; the message has: value"),
        ([{"from": "human"}], "c[0].value", "is missing; the message has: from"),
        ([{"from": "narrator", "value": "Hi"}], "c[0].from", "'narrator' is no role; the roles are .*human"),
        ([{"from": ["gpt"], "value": "Hi"}], "c[0].from", "is no role"),
        ([{"from": "human", "value": 3}], "c[0].value", "must be a string, not a number"),
        ([{"from": "gpt", "value": "Hi", "loss": 1}], "c[0].loss", "must be true or false, not a number"),
        ([{"from": "function_call", "value": "weather(Ulm)"}], "c[0].value", "is a tool call, and no JSON"),
        ([{"from": "function_call", "value": '"weather"'}], "c[0].value", "no object with name and arguments"),
        ([{"from": "function_call", "value": '{"name": "f", "arguments": "x"}'}], "c[0].value", "arguments are no JSON"),
    ],
)
def test_what_is_no_conversation(value: Any, column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        tagged_turns(value, "c", Tags())
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ('{"name": "f", "arguments": [1]}', "is a tool call whose arguments are a list, not an object"),
        ('{"name": "f", "arguments": "7"}', "is a tool call whose arguments are a number, not an object"),
        ("[" * 200_000, "is a tool call, and no JSON: maximum recursion depth"),
    ],
)
def test_calls_that_nobody_can_make(call: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        tagged_turns([{"from": "function_call", "value": call}], "conversations", Tags())
    assert caught.value.column == "conversations[0].value"
