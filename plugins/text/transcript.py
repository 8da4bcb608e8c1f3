"""A conversation in one text, cut at the marks that stand before its turns.

    "### Human: What is basalt?### Assistant: A dark volcanic rock.### Human: Where from?### Assistant: Lava."
     `-- user mark            `-- assistant mark

The marks of https://huggingface.co/datasets/timdettmers/openassistant-guanaco are the defaults; OIG writes `<human>:` and
`<bot>:`. White space around a turn is no part of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from luthier.core.extensions import Row, RowError
from luthier.core.options import option
from luthier.core.rows import filled_text


@dataclass(frozen=True, kw_only=True)
class TranscriptConfig:
    """The marks before each turn."""

    user: str = option("### Human:", "What stands before a turn of the user.")
    assistant: str = option("### Assistant:", "What stands before a turn of the assistant.")
    system: str = option("### System:", "What stands before the system message.")

    def __post_init__(self) -> None:
        marks = (self.user, self.assistant, self.system)
        if not all(mark.strip() for mark in marks) or len(set(marks)) < len(marks):
            raise ValueError(f"user, assistant and system need three different marks, got {', '.join(map(repr, marks))}")


def detect(row: Row) -> bool:
    """Never: such a row is raw text as well, and which of the two is meant only its owner knows."""
    return False


def convert(row: Row, options: TranscriptConfig) -> Row:
    """The conversation; raises RowError when the text does not begin with a mark."""
    text = filled_text(row, "text")
    before, *pieces = _marks(options).split(text)
    if before.strip() or not pieces:
        raise RowError(
            f"begins with none of the marks {', '.join(map(repr, _names(options)))}: {text[:40]!r}", column="text"
        )
    names = _names(options)
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return {"messages": [{"role": names[mark], "content": content.strip()} for mark, content in turns]}


def _names(options: TranscriptConfig) -> dict[str, str]:
    return {options.user: "user", options.assistant: "assistant", options.system: "system"}


@lru_cache(maxsize=16)
def _marks(options: TranscriptConfig) -> re.Pattern[str]:
    # The longest first: one mark may begin like another.
    longest_first = sorted(_names(options), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
