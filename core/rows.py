"""What data formats do with the columns of a row: take a text, an answer or messages out of it, or say what is wrong.

Light to import, so that a plugin can do it at the top of its `__init__`. Every RowError names the column; a
column that is there and null counts as empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from luthier.core.extensions import Row, RowError

SYSTEM_COLUMNS: Final = ("system", "system_prompt")
_TYPES: Final = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", tuple: "a list"}

Turn = dict[str, Any]


def shown_type(value: object) -> str:
    """A value's type in the words of JSON: "a list", "null", ..."""
    if isinstance(value, Mapping):
        return "an object"
    return "null" if value is None else _TYPES.get(type(value), type(value).__name__)


def first_of(row: Row, columns: Iterable[str]) -> str | None:
    """The first of the columns that the row has, or None."""
    return next((column for column in columns if column in row), None)


def pair_of(row: Row, pairs: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The first pair of columns that the row has both of, or None."""
    return next((pair for pair in pairs if pair[0] in row and pair[1] in row), None)


def missing(row: Row, column: str) -> RowError:
    """The error to raise about a column that the row has not got."""
    return RowError(f"is missing; the row has: {', '.join(map(str, row)) or 'nothing'}", column=column)


def require(row: Row, column: str) -> Any:
    """The value of a column; raises RowError when the row has no such column."""
    if column not in row:
        raise missing(row, column)
    return row[column]


def encodable(text: str, column: str) -> str:
    """The text; raises RowError where no tokenizer could read it (a lone surrogate is valid JSON, but no text)."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(f"has a broken Unicode escape, \\u{ord(text[error.start]):04x}", column=column) from error
    return text


def text_of(row: Row, column: str) -> str:
    """A text, which may be empty; raises RowError when it is missing, null, no string, or cannot be encoded."""
    value = require(row, column)
    if not isinstance(value, str):
        raise RowError(f"must be a string, not {shown_type(value)}", column=column)
    return encodable(value, column)


def optional_text(row: Row, column: str | None) -> str:
    """A text, or "" where the column is missing or null; raises RowError for anything else that is no string."""
    value = row.get(column) if column is not None else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"must be a string, not {shown_type(value)}", column=str(column))
    return encodable(value, str(column))


def filled_text(row: Row, column: str, what: str = "is empty") -> str:
    """A text that says something; raises RowError with the words `what` when it is blank."""
    text = text_of(row, column)
    if not text.strip():
        raise RowError(what, column=column)
    return text


def answer_text(row: Row, column: str) -> str:
    """A text to learn; raises RowError when it is blank."""
    return filled_text(row, column, "is an empty answer")


def joined(*parts: str, by: str = "\n\n") -> str:
    """The parts that are not blank, with a blank line between them."""
    return by.join(part for part in parts if part.strip())


def user(text: str) -> Turn:
    return {"role": "user", "content": text}


def assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def with_system(messages: list[Turn], row: Row, columns: Iterable[str] = SYSTEM_COLUMNS) -> list[Turn]:
    """The messages with the row's system text before them, where it has one and they have none."""
    text = optional_text(row, first_of(row, columns))
    if not text.strip() or (messages and messages[0].get("role") == "system"):
        return messages
    return [{"role": "system", "content": text}, *messages]


def turns_of(value: Any, column: str) -> list[Turn]:
    """Messages as plain dicts; raises RowError naming the place, such as prompt[2].role, for what are no messages."""
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a string or a list of messages, not {shown_type(value)}", column=column)
    if value and all(map(_plain, value)):
        return [dict(message) for message in value]
    # Tool calls, parts of text, or a mistake: an error should name the column that the row has, and not `messages`.
    from luthier.core.data.conversation import check_messages

    return check_messages(value, column)


def _plain(message: Any) -> bool:
    return (
        isinstance(message, Mapping)
        and len(message) == 2
        and message.get("role") in ("system", "user", "assistant", "tool")
        and isinstance(message.get("content"), str)
    )


def prompt_turns(row: Row, column: str) -> list[Turn]:
    """A prompt: a text becomes one user message, messages stay what they are."""
    value = require(row, column)
    return [user(filled_text(row, column))] if isinstance(value, str) or value is None else turns_of(value, column)


def answer_turns(row: Row, column: str) -> list[Turn]:
    """An answer: a text becomes one assistant message, messages stay what they are, one message is a list of one."""
    value = require(row, column)
    if isinstance(value, Mapping):
        value = [value]
    return [assistant(answer_text(row, column))] if isinstance(value, str) or value is None else turns_of(value, column)


def instruction_turns(row: Row) -> list[Turn]:
    """History, then instruction and input joined by a newline; raises RowError when there is nothing to answer."""
    question = joined(text_of(row, "instruction"), optional_text(row, "input"), by="\n")
    if not question:
        raise RowError("is empty, and so is the input: there is nothing to answer", column="instruction")
    history = row.get("history") or ()
    if not isinstance(history, list | tuple):
        raise RowError(f"must be a list of [question, answer] pairs, not {shown_type(history)}", column="history")
    turns = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("must be a [question, answer] pair", column=f"history[{index}]")
        asked, answered = f"history[{index}][0]", f"history[{index}][1]"
        flat = {asked: pair[0], answered: pair[1]}
        turns += [user(text_of(flat, asked)), assistant(answer_text(flat, answered))]
    return [*turns, user(question)]


def tools_of(row: Row, column: str = "tools") -> dict[str, Any]:
    """{"tools": [...]} where the row has tools, as a list or as JSON text, else {}; raises RowError for anything else."""
    value = row.get(column)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"is no JSON: {error}", column=column) from error
    if not value:
        return {}
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a list of JSON schemas, not {shown_type(value)}", column=column)
    return {"tools": list(value)}
