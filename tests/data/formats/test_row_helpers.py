"""core/rows.py: what every format does with a column, and the words of its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core import rows
from luthier.core.extensions import RowError
from luthier.core.frozen import freeze


def test_a_missing_column_names_those_that_are_there() -> None:
    with pytest.raises(RowError, match="is missing; the row has: a, b") as caught:
        rows.text_of({"a": 1, "b": 2}, "c")
    assert caught.value.column == "c"
    with pytest.raises(RowError, match="the row has: nothing"):
        rows.text_of({}, "c")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "not null"), (True, "not a boolean"), (3, "not a number"), (["a"], "not a list"),
        ({"a": 1}, "not an object"),
    ],
)  # fmt: skip
def test_what_is_no_string_is_named_as_json_calls_it(value: Any, words: str) -> None:
    with pytest.raises(RowError, match=words):
        rows.text_of({"a": value}, "a")


def test_an_optional_text_may_be_missing_or_null_but_nothing_else() -> None:
    assert rows.optional_text({}, "a") == rows.optional_text({"a": None}, "a") == rows.optional_text({}, None) == ""
    with pytest.raises(RowError, match="must be a string, not a number"):
        rows.optional_text({"a": 1}, "a")


def test_a_blank_answer_is_empty() -> None:
    assert rows.answer_text({"a": " yes "}, "a") == " yes "
    with pytest.raises(RowError, match="is an empty answer"):
        rows.answer_text({"a": " \n"}, "a")


def test_parts_that_are_blank_leave_no_gap() -> None:
    assert rows.joined("a", " ", "", "b") == "a\n\nb"
    assert rows.joined("a", "b", by="\n") == "a\nb"


def test_system_comes_first_unless_there_is_one() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    system = {"role": "system", "content": "Be brief."}
    assert rows.with_system(messages, {"system_prompt": "Be brief."}) == [system, *messages]
    assert rows.with_system(messages, {"system": None}) == rows.with_system(messages, {"system": " "}) == messages
    assert rows.with_system([system, *messages], {"system": "Other."}) == [system, *messages]


def test_messages_may_be_frozen() -> None:
    """Inline rows of a configuration are: their lists are tuples and their objects no dicts."""
    given = freeze([{"role": "user", "content": "Hi"}])
    assert rows.turns_of(given, "prompt") == [{"role": "user", "content": "Hi"}]
    assert rows.tools_of({"tools": freeze([{"name": "f"}])}) == {"tools": [{"name": "f"}]}


@pytest.mark.parametrize(
    ("value", "column", "words"),
    [
        (3, "prompt", "must be a string or a list of messages, not a number"),
        ([], "prompt", "is empty"),
        (["Hi"], "prompt[0]", "must be an object"),
        ([{"role": "user", "content": "Hi"}, {"content": "Hi"}], "prompt[1].role", "is missing"),
        ([{"role": "user", "content": 3}], "prompt[0].content", "must be a string"),
        ([{"role": "narrator", "content": "Hi"}], "prompt[0].role", "is no role"),
        ([{"role": "user", "content": "Hi", "mood": "glad"}], "prompt[0].mood", "is not understood"),
    ],
)
def test_what_is_no_list_of_messages(value: Any, column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        rows.prompt_turns({"prompt": value}, "prompt")
    assert caught.value.column == column


def test_messages_with_more_than_text_are_checked_and_kept() -> None:
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "user", "content": "Ann", "name": "ann"},
    ]
    assert rows.turns_of(parts, "prompt") == [{"role": "user", "content": "Hi"}, parts[1]]


def test_one_message_is_an_answer_as_well() -> None:
    message = {"role": "assistant", "content": "Hello!"}
    assert rows.answer_turns({"a": message}, "a") == rows.answer_turns({"a": [message]}, "a") == [message]
    assert rows.answer_turns({"a": "Hello!"}, "a") == [message]


@pytest.mark.parametrize("take", [rows.prompt_turns, rows.answer_turns])
def test_null_is_no_prompt_and_no_answer(take: Callable[..., Any]) -> None:
    with pytest.raises(RowError, match="must be a string, not null"):
        take({"a": None}, "a")


def test_tools_are_a_list_or_its_json() -> None:
    assert rows.tools_of({"tools": '[{"name": "f"}]'}) == {"tools": [{"name": "f"}]}
    assert (
        rows.tools_of({})
        == rows.tools_of({"tools": None})
        == rows.tools_of({"tools": ""})
        == rows.tools_of({"tools": "[]"})
        == {}
    )
    for value, words in [("f(x)", "is no JSON"), ({"name": "f"}, "must be a list of JSON schemas, not an object")]:
        with pytest.raises(RowError, match=words) as caught:
            rows.tools_of({"tools": value})
        assert caught.value.column == "tools"


def test_history_comes_before_the_instruction() -> None:
    row = {"instruction": "Greet.", "input": "Ann", "history": [["Hi", "Hello!"]]}
    assert [turn["content"] for turn in rows.instruction_turns(row)] == ["Hi", "Hello!", "Greet.\nAnn"]
    assert rows.instruction_turns({"instruction": "Greet.", "input": "", "history": []}) == [rows.user("Greet.")]


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"instruction": "", "input": " "}, "instruction", "nothing to answer"),
        ({"instruction": "a", "history": "b"}, "history", "must be a list of"),
        ({"instruction": "a", "history": [["b"]]}, "history[0]", "must be a .question, answer. pair"),
        ({"instruction": "a", "history": [["b", "c"], ["d", ""]]}, "history[1][1]", "is an empty answer"),
    ],
)
def test_what_is_no_instruction(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        rows.instruction_turns(row)
    assert caught.value.column == column
