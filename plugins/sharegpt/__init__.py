"""ShareGPT's rows: conversations whose messages have `from` and `value`, with tool calls as LLaMA-Factory writes them.

    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": "Be brief."}
    {"conversations": [..., {"from": "function_call", "value": "{...}"}, {"from": "observation", ...}], "tools": "[...]"}

The names of keys and roles are options, LLaMA-Factory's `tags`; the usual others (`role` and `content`, `user`, `assistant`,
`tool`, ...) are understood beside them. Every turn of the assistant is learned. Follows the data README of
https://github.com/hiyouga/LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from luthier.core.extensions import DataFormat, Row
from luthier.core.hookspecs import hookimpl
from luthier.core.rows import require, tools_of, with_system
from luthier.core.tagged import Tags, tagged_turns


def detect(row: Row) -> bool:
    return _is_conversation(row.get("conversations")) and "chosen" not in row


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def convert(row: Row, options: Tags) -> Row:
    """The canonical conversation; raises RowError naming the column, such as conversations[2].value."""
    turns = tagged_turns(require(row, "conversations"), "conversations", options)
    return {"messages": with_system(turns, row)} | tools_of(row)


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="sharegpt",
        summary="Conversations of messages with from and value; tool calls and results by their own roles.",
        kind="conversation",
        columns="conversations; optional system, tools",
        detect=detect,
        convert=convert,
        config=Tags,
    )
