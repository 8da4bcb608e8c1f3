"""The formats alpaca, messages and sharegpt: what they give, and which column they name when they cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.core.data.conversation import check_row
from luthier.core.extensions import RowError
from luthier.core.tagged import Tags
from luthier.plugins import alpaca, messages, sharegpt

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
PLAIN = messages.MessagesConfig()
SCHEMA = {"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}


def conversation(row: dict[str, Any], options: messages.MessagesConfig = PLAIN) -> dict[str, Any]:
    return check_row("conversation", messages.convert(row, options))


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
        ({"output": None}, "output", "must be a string, not null"),
        ({"output": "  \n"}, "output", "empty answer"),
        ({"instruction": 7}, "instruction", "must be a string"),
        ({"instruction": ""}, "instruction", "is empty, and so is the input"),
        ({"input": ["x"]}, "input", "must be a string"),
        ({"system": 1}, "system", "must be a string"),
        ({"history": "x"}, "history", "must be a list"),
        ({"history": [["q", "a"], ["q"]]}, "history[1]", "must be a [question, answer] pair"),
        ({"history": [["q", None]]}, "history[0][1]", "must be a string, not null"),
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
        (lambda row: messages.convert(row, PLAIN), {"conversations": []}, "messages"),
        (lambda row: sharegpt.convert(row, Tags()), {"messages": []}, "conversations"),
    ):
        with pytest.raises(RowError, match=f"is missing; the row has: {next(iter(row))}") as caught:
            convert(row)
        assert caught.value.column == column


def test_messages_pass_through_without_empty_extras() -> None:
    row = {"messages": [{"role": "system", "content": ""}, USER | {"name": None}, ANSWER, {"role": "tool", "content": "3"}]}
    assert conversation(row) == {"messages": [{"role": "system", "content": ""}, USER, ANSWER, row["messages"][3]]}
    assert conversation({"conversation": row["messages"], "model": "x"}) == conversation(row)


@pytest.mark.parametrize("tools", [[SCHEMA], json.dumps([SCHEMA]), [{"type": "function", "function": SCHEMA}]])
def test_messages_with_tools(tools: Any) -> None:
    wire = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [wire]}]
    turns += [{"role": "tool", "content": "21 °C", "tool_call_id": "c1"}, ANSWER]
    assert conversation({"messages": turns, "tools": tools}) == {
        "messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]}, *turns[2:]],
        "tools": [{"type": "function", "function": SCHEMA}],
    }


def test_messages_leaves_out_what_it_is_told_to() -> None:
    row = {"messages": [USER | {"id": 1}, ANSWER | {"id": 2, "score": 3}]}
    with pytest.raises(RowError, match="is not understood") as caught:
        conversation(row)
    assert caught.value.column == "messages[0].id"
    options = messages.MessagesConfig(ignore=("id", "score"))
    assert conversation(row, options) == {"messages": [USER, ANSWER]}


def test_sharegpt_with_tool_calls() -> None:
    turns = [
        {"from": "human", "value": "Warm?"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "21 °C"},
        {"from": "gpt", "value": "Yes."},
    ]
    row = {"conversations": turns, "system": "Be brief.", "tools": json.dumps([SCHEMA])}
    assert check_row("conversation", sharegpt.convert(row, Tags())) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Warm?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "21 °C"},
            {"role": "assistant", "content": "Yes."},
        ],
        "tools": [{"type": "function", "function": SCHEMA}],
    }


def test_sharegpt_names_the_column() -> None:
    with pytest.raises(RowError, match="is a tool call, and no JSON") as caught:
        sharegpt.convert({"conversations": [{"from": "function_call", "value": "{"}]}, Tags())
    assert caught.value.column == "conversations[0].value"
    with pytest.raises(RowError, match="'narrator' is no role") as caught:
        sharegpt.convert({"conversations": [{"from": "narrator", "value": "x"}]}, Tags())
    assert caught.value.column == "conversations[0].from"


def test_detection_by_columns() -> None:
    assert alpaca.detect({"instruction": 1, "output": 2})
    assert not alpaca.detect({"instruction": 1})
    assert messages.detect({"messages": []})
    assert messages.detect({"conversation": [USER]})
    assert not messages.detect({"conversation": "some text"})
    assert not messages.detect({"conversations": []})
    assert sharegpt.detect({"conversations": [{"from": "human", "value": "x"}]})
    assert not sharegpt.detect({"conversations": "some text"})
