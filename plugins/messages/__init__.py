"""Rows of messages, each with role and content, as chat APIs write them.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    {"tools": [...], "messages": [..., {"role": "assistant", "tool_calls": [...]}, {"role": "tool", "content": "21 °C"}]}

Roles are system, user, assistant and tool; every assistant turn is learned, except one with `train: false` (or OpenAI's
`weight: 0`). Tool calls, tools and `reasoning_content` go to the chat template. Columns beside `messages` and `tools` are
not used; a key inside a message that is not understood is refused, unless the option `ignore` names it. Follows
https://platform.openai.com/docs/guides/fine-tuning and https://huggingface.co/docs/trl/dataset_formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.extensions import DataFormat, Row
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.rows import first_of, missing, tools_of

COLUMNS: Final = ("messages", "conversation")


@dataclass(frozen=True, kw_only=True)
class MessagesConfig:
    """What to leave out of messages."""

    ignore: tuple[str, ...] = option((), "Keys of messages that say nothing about what is learned, such as `id`.")


def detect(row: Row) -> bool:
    return "messages" in row or _is_conversation(row.get("conversation"))


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def convert(row: Row, options: MessagesConfig) -> Row:
    """The canonical conversation; raises RowError naming the column, such as messages[2].role."""
    column = first_of(row, COLUMNS)
    if column is None:
        raise missing(row, "messages")
    messages = row[column]
    if options.ignore and isinstance(messages, list | tuple):
        messages = [_without(message, options.ignore) for message in messages]
    if column != "messages":
        # Not at the top: discovery imports this module. Checked here so that errors name the row's own column.
        from luthier.core.data.conversation import check_conversation

        messages = check_conversation(messages, column)
    return {"messages": messages} | tools_of(row)


def _without(message: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(message, Mapping):
        return message
    return {key: value for key, value in message.items() if key not in keys}


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="messages",
        summary="A list of messages with role and content.",
        kind="conversation",
        columns="messages (or conversation); optional tools",
        detect=detect,
        convert=convert,
        config=MessagesConfig,
    )
