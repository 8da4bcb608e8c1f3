"""Raw text, learned as it stands; and conversations that were written down as text with a mark before each turn.

    text          {"text": "Basalt is a dark volcanic rock."}                      every token is learned
    transcript    {"text": "### Human: Hi### Assistant: Hello!"}                   the assistant's turns are

`text` takes the column text, else raw_content (RedPajama), else content (The Stack, RefinedWeb). A plain .txt file gives
rows of text. `transcript` is never detected, for such a row is text as well: it is named, with its marks as options.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from luthier.core.extensions import DataFormat, Row
from luthier.core.hookspecs import hookimpl
from luthier.core.rows import filled_text, first_of
from luthier.plugins.text import transcript

COLUMNS: Final = ("text", "raw_content", "content")


def detect(row: Row) -> bool:
    # A role makes it one message of a conversation that was spread over rows.
    return "role" not in row and any(isinstance(row.get(column), str) for column in COLUMNS)


def convert(row: Row) -> Row:
    """{"text": ...}; raises RowError when the column is missing, no string, or blank."""
    return {"text": filled_text(row, first_of(row, COLUMNS) or "text")}


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="text",
        summary="Raw text, every token of which is learned.",
        kind="text",
        columns="text, raw_content or content",
        detect=detect,
        convert=convert,
        priority=-30,
    )
    yield DataFormat(
        name="transcript",
        summary="A conversation in one text, with a mark before each turn; only by name.",
        kind="conversation",
        columns="text",
        detect=transcript.detect,
        convert=transcript.convert,
        config=transcript.TranscriptConfig,
    )
