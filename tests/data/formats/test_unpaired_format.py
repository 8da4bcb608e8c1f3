"""plugins/unpaired: an answer and whether it is a good one."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.core.tagged import Tags
from luthier.plugins import unpaired

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
MORE = {"role": "user", "content": "More?"}
ROW = {"messages": [HI], "completion": [HELLO], "label": True}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Hi", "response": "Hello!", "label": 1},
        {"prompt": [HI], "completion": [HELLO], "kto_tag": True},
        {"prompt": "Hi", "completion": [HI, HELLO], "label": True},
        {"messages": [HI, HELLO], "label": True},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "label": True},
        {"instruction": "Hi", "input": "", "output": "Hello!", "kto_tag": True},
        {"question": "Hi", "document_title": "a", "answer": "Hello!", "label": 1},
    ],
)
def test_shapes(row: dict[str, Any]) -> None:
    assert unpaired.detect(row)
    assert unpaired.convert(row, Tags()) == ROW


@pytest.mark.parametrize("label", [False, 0])
def test_a_bad_answer(label: Any) -> None:
    converted = unpaired.convert({"prompt": "Hi", "completion": "Hello!", "label": label}, Tags())
    assert converted["label"] is False


def test_history_system_and_tools() -> None:
    row = {"instruction": "More?", "history": [["Hi", "Hello!"]], "output": "Hello!", "label": True}
    row |= {"system": "Be brief.", "tools": '[{"name": "f"}]'}
    system = {"role": "system", "content": "Be brief."}
    assert unpaired.convert(row, Tags()) == ROW | {"messages": [system, HI, HELLO, MORE], "tools": [{"name": "f"}]}


def test_the_answer_is_what_follows_the_last_turn_of_another() -> None:
    row = {"messages": [HI, HELLO, MORE, HELLO, HELLO], "label": False}
    assert unpaired.convert(row, Tags()) == {"messages": [HI, HELLO, MORE], "completion": [HELLO, HELLO], "label": False}


def test_other_tags() -> None:
    row = {"conversations": [{"who": "Ann", "what": "Hi"}, {"who": "Bob", "what": "Hello!"}], "label": True}
    tags = Tags(role_tag="who", content_tag="what", user_tag="Ann", assistant_tag="Bob")
    assert unpaired.convert(row, tags) == ROW


@pytest.mark.parametrize("label", ["true", "False", "1", "desirable"])
def test_words_are_detected_and_refused_by_name(label: str) -> None:
    """Passed over, such a row would teach its bad answers as well."""
    row = {"prompt": "Hi", "completion": "Hello!", "label": label}
    assert unpaired.detect(row)
    with pytest.raises(RowError, match="must be true or false, or 1 or 0, not") as caught:
        unpaired.convert(row, Tags())
    assert caught.value.column == "label"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello!"},
        {"conversations": [HI, HELLO], "label": {"ability": ["chat"]}},
        {"messages": [HI, HELLO], "label": "coding"},
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "label": True},
        {"question": "a", "choices": ["b", "c"], "answer": "b", "label": 0},
        {"question": "a", "answerA": "b", "answerB": "c", "label": "1"},
        {"text": "a", "label": 1},
    ],
)
def test_what_is_another_formats(row: dict[str, Any]) -> None:
    assert not unpaired.detect(row)


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"prompt": "Hi", "completion": "Hello!"}, "label", "is missing"),
        ({"prompt": "Hi", "completion": "Hello!", "label": 2}, "label", "not 2"),
        ({"prompt": "Hi", "completion": "Hello!", "kto_tag": None}, "kto_tag", "not None"),
        ({"prompt": "Hi", "label": True}, "completion", "is missing"),
        ({"completion": "Hello!", "label": True}, "prompt", "is missing"),
        ({"prompt": "Hi", "completion": " ", "label": True}, "completion", "is an empty answer"),
        ({"messages": [HI, HELLO, MORE], "label": True}, "messages", "does not end with an answer"),
        ({"messages": [HELLO], "label": True}, "messages", "has no prompt"),
        ({"instruction": "", "output": "b", "label": True}, "instruction", "nothing to answer"),
        ({"instruction": "a", "output": "", "label": True}, "output", "is an empty answer"),
    ],
)
def test_what_is_wrong(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        unpaired.convert(row, Tags())
    assert caught.value.column == column
