"""plugins/prompt_completion: prompt and completion under the names that data sets have for them, and lists of turns."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.plugins import prompt_completion
from luthier.plugins.prompt_completion import turns

USER = {"role": "user", "content": "Which rock?"}
ANSWER = {"role": "assistant", "content": "Basalt."}


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("prompt", "completion"), ("prompt", "response"), ("query", "response"), ("question", "response"),
        ("Question", "Response"), ("problem", "solution"), ("problem", "generated_solution"), ("inputs", "targets"),
        ("input", "target"), ("input", "output"),
    ],
)  # fmt: skip
def test_each_pair_of_names(prompt: str, completion: str) -> None:
    row = {"id": 7, prompt: "Which rock?", completion: "Basalt."}
    assert prompt_completion.detect(row)
    assert prompt_completion.convert(row) == {"messages": [USER], "completion": [ANSWER]}


def test_messages_stay_what_they_are() -> None:
    """The answers of a given prompt stay in it: they are not the completion, and so not learned."""
    given = [{"role": "system", "content": "Be brief."}, USER, ANSWER, {"role": "user", "content": "More?"}]
    row = {"prompt": given, "completion": [ANSWER], "tools": [{"name": "f"}]}
    assert prompt_completion.convert(row) == {"messages": given, "completion": [ANSWER], "tools": [{"name": "f"}]}


def test_a_prompt_of_messages_with_a_completion_of_text() -> None:
    assert prompt_completion.convert({"prompt": [USER], "completion": "Basalt."}) == {
        "messages": [USER],
        "completion": [ANSWER],
    }


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_system(column: str) -> None:
    row = {"question": "Which rock?", "response": "Basalt.", column: "Be brief."}
    assert prompt_completion.convert(row)["messages"] == [{"role": "system", "content": "Be brief."}, USER]


@pytest.mark.parametrize("column", ["reasoning_content", "thinking", "Complex_CoT"])
def test_reasoning_belongs_to_the_answer(column: str) -> None:
    row = {"prompt": "Which rock?", "completion": "Basalt.", column: "It is dark."}
    assert prompt_completion.convert(row)["completion"] == [{**ANSWER, "reasoning_content": "It is dark."}]
    assert prompt_completion.convert(row | {column: None})["completion"] == [ANSWER]


def test_a_switch_called_reasoning_is_no_reasoning() -> None:
    """nvidia/Llama-Nemotron-Post-Training-Dataset has a column reasoning of "on" and "off"."""
    row = {"input": [USER], "output": "Basalt.", "reasoning": "on"}
    assert prompt_completion.convert(row)["completion"] == [ANSWER]


@pytest.mark.parametrize("column", ["instruction", "definition", "label", "kto_tag", "chosen"])
def test_rows_that_say_more_are_not_taken(column: str) -> None:
    assert not prompt_completion.detect({"input": "a", "output": "b", "prompt": "a", "completion": "b", column: "c"})


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"completion": "b"}, "prompt", "is missing"),
        ({"prompt": "a"}, "completion", "is missing"),
        ({"prompt": "  ", "completion": "b"}, "prompt", "is empty"),
        ({"prompt": "a", "completion": ""}, "completion", "is an empty answer"),
        ({"prompt": "a", "completion": None}, "completion", "not null"),
        ({"prompt": "a", "completion": 4}, "completion", "not a number"),
        ({"prompt": "a", "completion": "b", "system": ["c"]}, "system", "not a list"),
        ({"prompt": "a", "completion": [USER, ANSWER], "thinking": "c"}, "thinking", "does not begin with one"),
    ],
)
def test_what_is_wrong(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        prompt_completion.convert(row)
    assert caught.value.column == column


@pytest.mark.parametrize("column", ["conversations", "data", "dialogue", "turns"])
def test_texts_in_turn(column: str) -> None:
    row = {column: ["Which rock?", "Basalt.", "More?", "Slate."], "system": "Be brief."}
    assert turns.detect(row)
    assert [(turn["role"], turn["content"]) for turn in turns.convert(row)["messages"]] == [
        ("system", "Be brief."), ("user", "Which rock?"), ("assistant", "Basalt."), ("user", "More?"),
        ("assistant", "Slate."),
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["Which rock?", [], [USER, ANSWER], [{"from": "human", "value": "Hi"}], None])
def test_what_is_no_list_of_texts_is_not_taken(value: Any) -> None:
    assert not turns.detect({"conversations": value})


@pytest.mark.parametrize(
    ("value", "column", "words"),
    [
        ("a", "data", "must be a list of texts, not a string"),
        ([], "data", "there are no turns"),
        (["a", 3], "data[1]", "must be a string, not a number"),
        (["a", " "], "data[1]", "is an empty answer"),
    ],
)
def test_what_is_wrong_with_turns(value: Any, column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        turns.convert({"data": value})
    assert caught.value.column == column


def test_turns_without_their_column() -> None:
    with pytest.raises(RowError, match="is missing; the row has: text"):
        turns.convert({"text": "a"})
