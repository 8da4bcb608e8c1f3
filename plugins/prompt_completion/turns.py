"""A list of texts, the user's and the assistant's in turn: prompts and completions without their names.

    {"data": ["What is basalt?", "A dark volcanic rock.", "Where does it come from?", "Lava."]}

The first text is the user's. As in https://huggingface.co/datasets/stingning/ultrachat (data), GAIR/lima (conversations) and
allenai/soda (dialogue).
"""

from __future__ import annotations

from typing import Final

from luthier.core.extensions import Row, RowError
from luthier.core.rows import assistant, first_of, missing, shown_type, user, with_system

COLUMNS: Final = ("conversations", "data", "dialogue", "turns")


def detect(row: Row) -> bool:
    value = row.get(first_of(row, COLUMNS) or "")
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) for text in value)


def convert(row: Row) -> Row:
    """The conversation; raises RowError when the column is no list of texts, or an answer is empty."""
    column = first_of(row, COLUMNS)
    if column is None:
        raise missing(row, COLUMNS[0])
    value = row[column]
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a list of texts, not {shown_type(value)}", column=column)
    if not value:
        raise RowError("is empty: there are no turns in it", column=column)
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise RowError(f"must be a string, not {shown_type(text)}", column=f"{column}[{index}]")
        if index % 2 and not text.strip():
            raise RowError("is an empty answer", column=f"{column}[{index}]")
    messages = [assistant(text) if index % 2 else user(text) for index, text in enumerate(value)]
    return {"messages": with_system(messages, row)}
