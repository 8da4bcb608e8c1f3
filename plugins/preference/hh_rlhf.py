"""Texts that mark their turns with Human: and Assistant:, as https://huggingface.co/datasets/Anthropic/hh-rlhf has them.

    chosen      "\\n\\nHuman: Which rock?\\n\\nAssistant: Basalt."
    rejected    "\\n\\nHuman: Which rock?\\n\\nAssistant: Oak."

Where there is a prompt column (Dahoas/full-hh-rlhf), it has the beginning, up to the last "Assistant:", and chosen and
rejected have the answers alone. White space around a turn is no part of it.
"""

from __future__ import annotations

import re
from typing import Final

from luthier.core.extensions import Row, RowError
from luthier.core.rows import Turn, answer_text, assistant, filled_text
from luthier.plugins.preference.pairs import divide, preference

MARK: Final = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ROLES: Final = {"Human": "user", "Assistant": "assistant"}
BEGINNING: Final = "Human:"


def detect(row: Row) -> bool:
    if "chosen" not in row or "rejected" not in row:
        return False
    text = row["prompt"] if "prompt" in row else row["chosen"]
    return isinstance(text, str) and text.lstrip().startswith(BEGINNING)


def convert(row: Row) -> Row:
    """The canonical preference; raises RowError when a text does not begin with Human:, or an answer is empty."""
    if "prompt" in row:
        prompt = parse(row, "prompt")
        if prompt[-1] == assistant(""):  # "...\n\nAssistant:", where the answer is to follow
            del prompt[-1]
        chosen, rejected = ([assistant(answer_text(row, column).strip())] for column in ("chosen", "rejected"))
        return preference(row, prompt, chosen, rejected)
    both = parse(row, "chosen"), parse(row, "rejected")
    for column, turns in zip(("chosen", "rejected"), both, strict=True):
        if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
            raise RowError("is an empty answer", column=column)
    return preference(row, *divide(*both))


def parse(row: Row, column: str) -> list[Turn]:
    """The turns of a text; raises RowError when it does not begin with a turn of the user."""
    before, *pieces = MARK.split(filled_text(row, column).strip())
    if before.strip() or not pieces or pieces[0] != "Human":
        raise RowError(f"does not begin with {BEGINNING}", column=column)
    marks = zip(pieces[::2], pieces[1::2], strict=True)
    return [{"role": ROLES[mark], "content": content.strip()} for mark, content in marks]
