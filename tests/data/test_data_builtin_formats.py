"""The formats alpaca and messages: what they give, and which column they name when they cannot."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.data.conversation import check_conversation
from luthier.core.extensions import RowError
from luthier.plugins import alpaca, messages

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def test_alpaca_joins_the_input_by_a_newline() -> None:
    # src/llamafactory/data/converter.py of LLaMA-Factory: "\n".join of the parts that are not empty.
    row = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    assert alpaca.convert(row)["messages"] == [
        {"role": "user", "content": "Translate.\nGuten Tag"},
        {"role": "assistant", "content": "Good day"},
    ]
    for empty in ({"input": ""}, {"input": None}, {}):
        query = alpaca.convert({"instruction": "Hi", "output": "Yes"} | empty)["messages"][0]["content"]
        assert query == "Hi"
    assert alpaca.convert({"instruction": "", "input": "x", "output": "y"})["messages"][0]["content"] == "x"


def test_alpaca_history_and_system_in_order() -> None:
    row = {"instruction": "c", "output": "d", "history": [["1", "2"], ["3", "4"]], "system": "s"}
    turns = [(message["role"][0], message["content"]) for message in alpaca.convert(row)["messages"]]
    assert turns == [("s", "s"), ("u", "1"), ("a", "2"), ("u", "3"), ("a", "4"), ("u", "c"), ("a", "d")]


@pytest.mark.parametrize(
    ("change", "column", "words"),
    [
        ({"output": None}, "output", "must be a string"),
        ({"output": "  \n"}, "output", "empty answer"),
        ({"instruction": 7}, "instruction", "must be a string"),
        ({"instruction": ""}, "instruction", "is empty, and so is the input"),
        ({"input": ["x"]}, "input", "must be a string"),
        ({"system": 1}, "system", "must be a string"),
        ({"history": "x"}, "history", "must be a list"),
        ({"history": [["q", "a"], ["q"]]}, "history[1]", "must be a [question, answer] pair"),
        ({"history": [["q", None]]}, "history[0]", "must be a [question, answer] pair"),
        ({"history": [["q", " "]]}, "history[0][1]", "empty answer"),
    ],
)
def test_alpaca_names_the_column(change: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError) as caught:
        alpaca.convert({"instruction": "Hi", "input": "", "output": "Yes"} | change)
    assert caught.value.column == column
    assert words in str(caught.value)


def test_missing_columns() -> None:
    for convert, row, column in (
        (alpaca.convert, {"instruction": "Hi"}, "output"),
        (alpaca.convert, {"output": "Hi"}, "instruction"),
        (messages.convert, {"conversations": []}, "messages"),
    ):
        with pytest.raises(RowError, match=f"is missing; the row has: {next(iter(row))}") as caught:
            convert(row)
        assert caught.value.column == column


def test_messages_pass_through_without_empty_extras() -> None:
    row = {"messages": [{"role": "system", "content": ""}, USER | {"name": None}, ANSWER, {"role": "tool", "content": "3"}]}
    assert messages.convert(row) == {"messages": [{"role": "system", "content": ""}, USER, ANSWER, row["messages"][3]]}


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
        ([USER, {"role": "assistant", "content": None}], "messages[1].content", "must be a string, not null"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "messages[1].content", "not a list"),
        ([USER, ANSWER | {"tool_calls": [1]}], "messages[1].tool_calls", "is not understood"),
        ([USER, ANSWER | {"weight": 0}], "messages[1].weight", "is not understood"),
        ([{"role": "user", "content": "\ud83d"}], "messages[0].content", "broken Unicode escape, \\ud83d"),
    ],
)
def test_messages_names_the_column(value: Any, column: str, words: str) -> None:
    with pytest.raises(RowError) as caught:
        messages.convert({"messages": value})
    assert caught.value.column == column
    assert words in str(caught.value)


def test_messages_refuses_tools() -> None:
    with pytest.raises(RowError) as caught:
        messages.convert({"messages": [USER, ANSWER], "tools": "[{}]"})
    assert caught.value.column == "tools"
    assert messages.convert({"messages": [USER, ANSWER], "tools": None})


@pytest.mark.parametrize(
    ("turns", "column", "words"),
    [
        ([USER], "messages", "no assistant turn"),
        ([ANSWER, USER], "messages[0].role", "begins with the assistant"),
        ([USER, ANSWER, USER, {"role": "assistant", "content": " "}], "messages[3].content", "is an empty answer"),
    ],
)
def test_a_conversation_has_something_to_learn(turns: Any, column: str, words: str) -> None:
    with pytest.raises(RowError) as caught:
        check_conversation({"messages": turns})
    assert caught.value.column == column
    assert words in str(caught.value)


def test_detection_by_columns() -> None:
    assert alpaca.detect({"instruction": 1, "output": 2})
    assert not alpaca.detect({"instruction": 1})
    assert messages.detect({"messages": []})
    assert not messages.detect({"conversations": []})
