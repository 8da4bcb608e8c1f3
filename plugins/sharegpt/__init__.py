"""ShareGPT's rows: conversations whose messages have `from` and `value`, with tool calls as LLaMA-Factory writes them.

    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "system": "Be brief."}
    {"conversations": [..., {"from": "function_call", "value": "{...}"}, {"from": "observation", ...}], "tools": "[...]"}

The names of keys and roles are options, LLaMA-Factory's `tags`; the usual others (`role` and `content`, `user`, `assistant`,
`tool`, ...) are understood beside them. Every turn of the assistant is learned. Follows the data README of
https://github.com/hiyouga/LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from luthier.core.extensions import DataFormat, Row, RowError
from luthier.core.hookspecs import hookimpl
from luthier.core.rows import require, tools_of, with_system
from luthier.core.tagged import Tags, tagged_turns

COLUMN: Final = "conversations"


def detect(row: Row) -> bool:
    return _is_conversation(row.get("conversations")) and "chosen" not in row


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def convert(row: Row, options: Tags) -> Row:
    """The canonical conversation; raises RowError naming the column, such as conversations[2].value."""
    # Not at the top: discovery imports this module. Checked here so that errors name the row's own column and message.
    from luthier.core.data.conversation import check_conversation

    turns = tagged_turns(require(row, COLUMN), COLUMN, options)
    messages = with_system(turns, row)
    try:
        check_conversation(turns, COLUMN, led=len(messages) > len(turns))
    except RowError as error:
        raise RowError(str(error), column=_as_written(error.column, row[COLUMN], options)) from error
    return {"messages": messages} | tools_of(row)


def _as_written(column: str, messages: Any, tags: Tags) -> str:
    """conversations[1].content as conversations[1].value, where that is what the message calls it."""
    place, dot, key = column.partition(".")
    tag = {"content": tags.content_tag, "role": tags.role_tag}.get(key, key)
    index = place[len(COLUMN) + 1 : -1]
    return f"{place}.{tag}" if dot and tag in messages[int(index)] else column


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
