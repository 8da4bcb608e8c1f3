"""Rows of one kind as rows of another, where a source asks for it with `kind`.

preference    -> conversation   the chosen answer
unpaired      -> conversation   the answers whose label is true; the others are left out
conversation, preference, unpaired -> prompt
                                what leads to the last answer, which becomes the reference: its text, or, where it calls
                                tools, the message itself
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from luthier.core.contracts import DataKind
from luthier.core.extensions import Row

Kinds: TypeAlias = tuple[DataKind, DataKind]
LABEL_IS_FALSE: Final = "the label is false"


class LeftOut(Exception):
    """A row that has its format, and is left out on purpose; `reason` is what it is counted under."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def conversion(given: DataKind, wanted: DataKind) -> Callable[[Row], Row] | None:
    """From canonical rows of one kind to those of another; None where there is no way. Raises LeftOut for a row."""
    return _same if given == wanted else CONVERSIONS.get((given, wanted))


def possible(given: DataKind) -> list[DataKind]:
    """What rows of a kind can become."""
    return [given, *(wanted for one, wanted in CONVERSIONS if one == given)]


def _same(row: Row) -> Row:
    return row


def _chosen(row: Row) -> Row:
    return _with_tools(row, {"messages": row["messages"], "completion": row["chosen"]})


def _good(row: Row) -> Row:
    if not row["label"]:
        raise LeftOut(LABEL_IS_FALSE)
    return _with_tools(row, {"messages": row["messages"], "completion": row["completion"]})


def _prompt_of_conversation(row: Row) -> Row:
    messages = [*row["messages"], *row.get("completion", ())]
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return _with_tools(row, {"messages": messages[:last], "reference": _reference(messages[last])})


def _prompt_of_preference(row: Row) -> Row:
    return _with_tools(row, {"messages": row["messages"], "reference": _reference(row["chosen"][-1])})


def _prompt_of_unpaired(row: Row) -> Row:
    if not row["label"]:
        return _with_tools(row, {"messages": row["messages"]})
    return _with_tools(row, {"messages": row["messages"], "reference": _reference(row["completion"][-1])})


def _reference(answer: Row) -> Any:
    return answer if "tool_calls" in answer else answer["content"]


def _with_tools(row: Row, made: dict[str, Any]) -> Row:
    return made | {"tools": row["tools"]} if "tools" in row else made


CONVERSIONS: Final[dict[Kinds, Callable[[Row], Row]]] = {
    ("preference", "conversation"): _chosen,
    ("unpaired", "conversation"): _good,
    ("conversation", "prompt"): _prompt_of_conversation,
    ("preference", "prompt"): _prompt_of_preference,
    ("unpaired", "prompt"): _prompt_of_unpaired,
}
