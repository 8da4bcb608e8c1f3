"""plugins/prompt_completion/calls.py: requests that are answered by tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.plugins.prompt_completion import calls

CALL = {"name": "weather", "arguments": {"town": "Ulm"}}
TOWN = {"description": "A town.", "type": "str"}
DAYS = {"description": "Ahead.", "type": "int", "default": 1}
TOOL = {"name": "weather", "description": "Tells the weather.", "parameters": {"town": TOWN, "days": DAYS}}
SCHEMA = {"type": "object", "properties": {"town": TOWN, "days": DAYS}, "required": ["town"]}


@pytest.mark.parametrize("written", [lambda value: value, json.dumps], ids=["lists", "text"])
def test_calls_tools_and_request(written: Any) -> None:
    row = {"id": 1, "query": "Warm in Ulm?", "tools": written([TOOL]), "answers": written([CALL]), "system": "Call."}
    assert calls.detect(row)
    assert calls.convert(row) == {
        "messages": [{"role": "system", "content": "Call."}, {"role": "user", "content": "Warm in Ulm?"}],
        "completion": [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}],
        "tools": [{"type": "function", "function": TOOL | {"parameters": SCHEMA}}],
    }


def test_tools_that_are_schemas_stay_as_they_are() -> None:
    schema = {"type": "object", "properties": {"town": {"type": "string"}}}
    whole = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    row = {"query": "Warm?", "tools": [whole, {"name": "time"}, {"name": "sun", "parameters": schema}], "answers": [CALL]}
    nothing = {"type": "object", "properties": {}, "required": []}
    assert calls.convert(row)["tools"] == [
        whole,
        {"type": "function", "function": {"name": "time", "parameters": nothing}},
        {"type": "function", "function": {"name": "sun", "parameters": schema}},
    ]


@pytest.mark.parametrize(
    ("change", "column", "words"),
    [
        ({"query": ""}, "query", "is empty"),
        ({"tools": "[]"}, "tools", "no tool to call"),
        ({"tools": "weather"}, "tools", "is no JSON"),
        ({"tools": ["weather"]}, "tools[0]", "must be an object with name"),
        ({"tools": [{"name": "f", "parameters": "x"}]}, "tools[0].parameters", "must be an object"),
        ({"answers": "[]"}, "answers", "is an empty answer"),
        ({"answers": "Yes."}, "answers", "no JSON"),
    ],
)
def test_what_is_wrong(change: dict[str, Any], column: str, words: str) -> None:
    row = {"query": "Warm?", "tools": [TOOL], "answers": [CALL]} | change
    with pytest.raises(RowError, match=words) as caught:
        calls.convert(row)
    assert caught.value.column == column


@pytest.mark.parametrize("column", ["query", "tools", "answers"])
def test_a_column_that_is_missing(column: str) -> None:
    row = {"query": "Warm?", "tools": [TOOL], "answers": [CALL]}
    del row[column]
    assert not calls.detect(row)
    with pytest.raises(RowError, match="is missing"):
        calls.convert(row)
