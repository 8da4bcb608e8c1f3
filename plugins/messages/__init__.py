"""Rows of messages, each with role and content, as chat APIs write them.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}

Roles are system, user, assistant and tool; every assistant turn is learned. Columns beside `messages` are not used, except
that `tools` is refused: without the tools in the prompt the answers would be learned for the wrong question.
"""

from __future__ import annotations

from collections.abc import Iterable

from luthier.core.extensions import DataFormat, Row, RowError
from luthier.core.hookspecs import hookimpl


def detect(row: Row) -> bool:
    return "messages" in row


def convert(row: Row) -> Row:
    """The canonical conversation; raises RowError naming the column, such as messages[2].role."""
    # Inside the function: luthier.core.data needs numpy, and discovery should not wait for it.
    from luthier.core.data.conversation import check_messages

    if "messages" not in row:
        raise RowError(f"is missing; the row has: {', '.join(map(str, row)) or 'nothing'}", column="messages")
    if row.get("tools"):
        raise RowError("is not understood, and leaving it out would change what is learned", column="tools")
    return {"messages": check_messages(row["messages"])}


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="messages",
        summary="A list of messages with role and content.",
        kind="conversation",
        columns="messages",
        detect=detect,
        convert=convert,
    )
