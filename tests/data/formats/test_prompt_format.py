"""plugins/prompt: prompts without answers, and what judges an answer to them."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.plugins import prompt

USER = {"role": "user", "content": "6 times 7?"}
ANSWER = {"role": "assistant", "content": "42"}


def test_a_text_and_messages() -> None:
    assert prompt.convert({"prompt": "6 times 7?"}) == {"messages": [USER]}
    assert prompt.convert({"prompt": [USER], "system": "Add."}) == {
        "messages": [{"role": "system", "content": "Add."}, USER]
    }
    assert prompt.convert({"messages": [USER], "tools": [{"name": "f"}]}) == {"messages": [USER], "tools": [{"name": "f"}]}


def test_a_conversation_that_ends_with_the_user_is_a_prompt_by_name() -> None:
    row = {"messages": [USER, ANSWER, {"role": "user", "content": "Sure?"}]}
    assert not prompt.detect(row)
    assert prompt.convert(row) == {"messages": row["messages"]}


@pytest.mark.parametrize("column", ["answer", "solution", "ground_truth", "reference"])
@pytest.mark.parametrize("value", ["42", 42, ["42", "forty-two"], {"value": 42}])
def test_the_reference_is_handed_on_as_it_is(column: str, value: Any) -> None:
    assert prompt.convert({"prompt": "6 times 7?", column: value})["reference"] == value


def test_the_reference_inside_a_reward_model() -> None:
    row = {"prompt": [USER], "reward_model": {"ground_truth": "42", "style": "rule"}}
    assert prompt.convert(row)["reference"] == "42"
    assert "reference" not in prompt.convert({"prompt": [USER], "reward_model": "a-model", "answer": None})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a"},
        {"prompt": "a", "answer": "b"},
        {"prompt": [USER], "solution": "b"},
        {"messages": [USER], "answer": "b"},
    ],
)
def test_what_is_taken(row: dict[str, Any]) -> None:
    assert prompt.detect(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "text": "b"},
        {"prompt": "a", "messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER]},
        {"messages": [USER], "chosen": "b"},
        {"messages": []},
        {"messages": "a"},
        {"question": "a"},
    ],
)
def test_what_is_another_formats(row: dict[str, Any]) -> None:
    assert not prompt.detect(row)


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"answer": "b"}, "prompt", "is missing"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": [USER, ANSWER]}, "prompt[1].role", "ends with an answer"),
        ({"messages": [USER, ANSWER]}, "messages[1].role", "ends with an answer"),
    ],
)
def test_what_is_wrong(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        prompt.convert(row)
    assert caught.value.column == column
