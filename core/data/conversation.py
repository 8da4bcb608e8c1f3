"""The canonical conversation that every conversation format must give, and the check that it is one.

Formats of third parties give whatever they give: the check runs on every row, whoever converted it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from luthier.core.data.sources import json_type
from luthier.core.extensions import Row, RowError

Messages: TypeAlias = list[dict[str, str]]
ROLES: Final = ("system", "user", "assistant", "tool")


def check_messages(value: Any, column: str = "messages") -> Messages:
    """A non-empty list of {"role", "content"} as plain dicts; raises RowError naming the column, such as messages[2].role.

    Other keys of a message are refused unless they are null: a tool call or a weight that is left out silently would
    change what is learned.
    """
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a list of messages, not {json_type(value)}", column=column)
    if not value:
        raise RowError("is empty: a conversation needs messages", column=column)
    return [_message(message, f"{column}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, column: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise RowError(f"must be an object with role and content, not {json_type(message)}", column=column)
    for key in ("role", "content"):
        if key not in message:
            has = ", ".join(map(str, message)) or "nothing"
            raise RowError(f"is missing; the message has: {has}", column=f"{column}.{key}")
    unknown = [str(key) for key, item in message.items() if key not in ("role", "content") and item is not None]
    if unknown:
        raise RowError(
            "is not understood, and leaving it out would change what is learned; a message has role and content",
            column=f"{column}.{unknown[0]}",
        )
    role = message["role"]
    if role not in ROLES:
        raise RowError(f"{role!r} is no role; the roles are {', '.join(ROLES)}", column=f"{column}.role")
    return {"role": role, "content": check_text(message["content"], f"{column}.content")}


def check_text(value: Any, column: str) -> str:
    """A string that can be encoded; raises RowError otherwise (a lone surrogate is valid JSON, but no text)."""
    if not isinstance(value, str):
        raise RowError(f"must be a string, not {json_type(value)}", column=column)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"has a broken Unicode escape, \\u{ord(value[error.start]):04x}", column=column) from error
    return value


def check_conversation(canonical: Row) -> Messages:
    """The messages of a canonical conversation with something to learn from: at least one answer, and none empty."""
    messages = check_messages(canonical.get("messages"))
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise RowError("has no assistant turn: there is nothing to learn from it", column="messages")
    if answers[0] == 0:
        raise RowError("begins with the assistant: no prompt leads to such an answer", column="messages[0].role")
    for index in answers:
        if not messages[index]["content"].strip():
            raise RowError("is an empty answer", column=f"messages[{index}].content")
    return messages
