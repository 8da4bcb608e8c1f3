"""plugins/instruction_response: Dolly's rows and those of Natural Instructions."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.plugins import instruction_response


def said(row: dict[str, Any]) -> list[tuple[str, str]]:
    assert instruction_response.detect(row)
    return [(turn["role"], turn["content"]) for turn in instruction_response.convert(row)["messages"]]


def test_the_context_follows_after_a_blank_line() -> None:
    row = {"instruction": "Which rock?", "context": "Lava cools.", "response": "Basalt.", "category": "closed_qa"}
    assert said(row) == [("user", "Which rock?\n\nLava cools."), ("assistant", "Basalt.")]
    for context in ("", None):
        assert said(row | {"context": context})[0] == ("user", "Which rock?")


@pytest.mark.parametrize("column", ["response", "completion", "answer"])
def test_names_of_the_answer(column: str) -> None:
    row = {"instruction": "Which rock?", "input": "Lava.", "system": "Be brief.", column: "Basalt."}
    assert said(row) == [("system", "Be brief."), ("user", "Which rock?\n\nLava."), ("assistant", "Basalt.")]


def test_a_definition_comes_before_its_inputs() -> None:
    row = {"definition": "Name the rock.", "inputs": "Lava cools.", "targets": "Basalt."}
    assert said(row) == [("user", "Name the rock.\n\nLava cools."), ("assistant", "Basalt.")]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "response": "b", "output": "c"},
        {"instruction": "a", "response": "b", "label": True},
        {"instruction": "a", "chosen": "b", "rejected": "c", "response": "d"},
        {"instruction": "a", "options": ["b"], "answer": "b"},
        {"definition": "a", "inputs": "b"},
    ],
)
def test_what_is_another_formats(row: dict[str, Any]) -> None:
    assert not instruction_response.detect(row)


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"response": "b"}, "instruction", "is missing"),
        ({"instruction": "a"}, "response", "is missing"),
        ({"instruction": " ", "response": "b"}, "instruction", "is empty"),
        ({"instruction": "a", "response": " "}, "response", "is an empty answer"),
        ({"instruction": "a", "context": ["c"], "response": "b"}, "context", "not a list"),
        ({"definition": "a", "inputs": "b", "targets": ""}, "targets", "is an empty answer"),
    ],
)
def test_what_is_wrong(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        instruction_response.convert(row)
    assert caught.value.column == column
