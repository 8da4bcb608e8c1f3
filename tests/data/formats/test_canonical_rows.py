"""check_row: what every canonical row must be, whoever converted it, and the one form of what has several."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from luthier.core.data.conversation import check_messages, check_row
from luthier.core.extensions import RowError
from luthier.core.frozen import freeze

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    ("value", "column", "words"),
    [
        (None, "messages", "must be a list of messages, not null"),
        ({}, "messages", "not an object"),
        ([], "messages", "is empty"),
        ([USER, "x"], "messages[1]", "must be an object with role and content, not a string"),
        ([{"content": "x"}], "messages[0].role", "is missing; the message has: content"),
        ([USER, {"role": "assistant"}], "messages[1].content", "is missing"),
        ([USER, {"role": "gpt", "content": "x"}], "messages[1].role", "'gpt' is no role; the roles are system, user"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "is no role"),
        ([USER, {"role": "assistant", "content": None}], "messages[1].content", "is null"),
        ([USER, {"role": "assistant", "content": 3}], "messages[1].content", "must be a string, not a number"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "messages[1].content[0]", 'must be {"type": "text"'),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]", "the model reads text only"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]", "the model reads text only"),
        ([USER, ANSWER | {"tool_calls": [1]}], "messages[1].tool_calls[0]", "must be {"),
        ([USER, ANSWER | {"tool_calls": {"a": 1}}], "messages[1].tool_calls", "must be a list of tool calls, not an object"),
        ([USER | {"tool_calls": [CALL]}], "messages[0].tool_calls", "are made by the assistant only"),
        (
            [USER, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[1].tool_calls[0].arguments",
            "is no JSON",
        ),
        (
            [USER, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
            "messages[1].tool_calls[0].arguments",
            "must be an object, not a list",
        ),
        (
            [USER, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}]}],
            "messages[1].tool_calls[0].arguments",
            "broken Unicode escape",
        ),
        (
            [USER, ANSWER | {"tool_calls": [{"function": {"name": "\ud83d"}}]}],
            "messages[1].tool_calls[0].name",
            "broken Unicode escape",
        ),
        (
            [USER, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": {"day": date(2026, 1, 1)}}}]}],
            "messages[1].tool_calls[0].arguments",
            "cannot be written as JSON: Object of type date",
        ),
        (
            [USER, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "[" * 200_000}}]}],
            "messages[1].tool_calls[0].arguments",
            "is no JSON: maximum recursion depth",
        ),
        ([USER, ANSWER | {"weight": 0.5}], "messages[1].weight", "must be 0 or 1"),
        ([USER, ANSWER | {"train": 1}], "messages[1].train", "must be true or false"),
        ([USER, ANSWER | {"refusal": "no"}], "messages[1].refusal", "is not understood"),
        ([{"role": "user", "content": "\ud83d"}], "messages[0].content", "broken Unicode escape, \\ud83d"),
    ],
)
def test_a_faulty_message_is_named(value: Any, column: str, words: str) -> None:
    with pytest.raises(RowError) as caught:
        check_messages(value)
    assert caught.value.column == column
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "function", "name": "f", "content": "3"}, {"role": "tool", "name": "f", "content": "3"}),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}, {"role": "user", "content": "ab"}),
        (ANSWER | {"weight": 0}, ANSWER | {"train": False}),
        (ANSWER | {"weight": 1}, ANSWER),
        (ANSWER | {"train": False}, ANSWER | {"train": False}),
        (ANSWER | {"train": True}, ANSWER),
        (ANSWER | {"thinking": "hm"}, ANSWER | {"reasoning_content": "hm"}),
        ({"role": "assistant", "reasoning": "hm"}, {"role": "assistant", "content": "", "reasoning_content": "hm"}),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": None}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
            },
        ),
        (freeze(ANSWER | {"tool_calls": [CALL]}), ANSWER | {"tool_calls": [CALL]}),
    ],
)
def test_what_has_several_forms_gets_one(given: Any, made: dict[str, Any]) -> None:
    assert check_messages([given]) == [made]


@pytest.mark.parametrize(
    ("kind", "row", "column", "words"),
    [
        ("conversation", {"messages": [USER]}, "messages", "no assistant turn"),
        ("conversation", {"messages": [ANSWER, USER]}, "messages[0].role", "begins with the assistant"),
        (
            "conversation",
            {"messages": [USER, ANSWER, USER, ANSWER | {"content": " "}]},
            "messages[3].content",
            "is an empty answer",
        ),
        ("conversation", {"messages": [USER], "completion": [USER]}, "completion", "no assistant turn"),
        ("conversation", {"messages": [USER, ANSWER], "label": True}, "label", "is no part of a conversation row"),
        ("conversation", {"messages": [USER, ANSWER], "tools": [{}]}, "tools[0]", "must be a JSON schema"),
        ("text", {"text": None}, "text", "must be a string, not null"),
        ("text", {"text": " \n"}, "text", "is empty"),
        ("preference", {"messages": [USER], "chosen": [ANSWER]}, "rejected", "must be a list of messages, not null"),
        (
            "preference",
            {"messages": [USER], "chosen": [ANSWER], "rejected": [ANSWER | {"content": ""}]},
            "rejected[0].content",
            "is an empty answer",
        ),
        (
            "preference",
            {"messages": [USER], "chosen": [ANSWER], "rejected": [ANSWER], "margin": float("nan")},
            "margin",
            "must be a finite number",
        ),
        ("unpaired", {"messages": [USER], "completion": [ANSWER], "label": 1}, "label", "must be true or false, not 1"),
        ("unpaired", {"messages": [USER], "completion": [USER], "label": True}, "completion", "no assistant turn"),
        ("prompt", {"messages": [USER, ANSWER]}, "messages[1].role", "ends with the assistant"),
    ],
)
def test_a_faulty_row_is_named(kind: Any, row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError) as caught:
        check_row(kind, row)
    assert caught.value.column == column
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("conversation", {"messages": [USER, USER, ANSWER, ANSWER]}),
        ("conversation", {"messages": [{"role": "system", "content": "s"}, ANSWER]}),
        ("conversation", {"messages": [ANSWER | {"train": False}, USER, ANSWER]}),
        ("conversation", {"messages": [USER, ANSWER | {"content": "", "train": False}, USER, ANSWER]}),
        ("conversation", {"messages": [USER], "completion": [ANSWER]}),
        ("conversation", {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]}),
        ("text", {"text": " x"}),
        ("preference", {"messages": [USER], "chosen": [ANSWER], "rejected": [ANSWER], "margin": 2.0}),
        ("unpaired", {"messages": [USER], "completion": [ANSWER], "label": False}),
        ("prompt", {"messages": [USER], "reference": {"answer": 4}}),
    ],
)
def test_a_good_row_stays_what_it_is(kind: Any, row: dict[str, Any]) -> None:
    """Roles that do not alternate are the template's business: some accept them."""
    assert check_row(kind, row) == row


def test_a_reason_has_nothing_of_the_row() -> None:
    one = RowError("'gpt' is no role; the roles are system, user", column="messages[3].role")
    assert one.reason == "messages[].role ... is no role"
    assert RowError("is missing; the row has: a, b", column="output").reason == "output is missing"
    assert RowError("cannot be read").reason == "cannot be read"


def test_an_answer_is_learned_only_where_train_and_weight_both_say_so() -> None:
    for given in ({"weight": 0, "train": True}, {"train": True, "weight": 0}, {"weight": 1, "train": False}):
        assert check_messages([ANSWER | given]) == [ANSWER | {"train": False}], given
    assert check_messages([ANSWER | {"weight": 1, "train": True}]) == [ANSWER]


def test_tools_that_no_tokenizer_can_read_are_named() -> None:
    tools = [{"name": "f"}, {"name": "g", "description": "\ud83d"}]
    with pytest.raises(RowError, match="broken Unicode escape") as caught:
        check_row("conversation", {"messages": [USER, ANSWER], "tools": tools})
    assert caught.value.column == "tools[1]"
