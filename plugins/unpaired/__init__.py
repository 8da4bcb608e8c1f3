"""An answer and whether it is a good one: what KTO learns from.

    {"prompt": "Which rock?", "completion": "Basalt.", "label": true}                            TRL
    {"messages": [...user, assistant...], "label": false}                                        LLaMA-Factory
    {"instruction": "Which rock?", "input": "", "output": "Basalt.", "kto_tag": true}            LLaMA-Factory, Alpaca style

The label is true or false, or 1 or 0. A completion that begins with the user is a whole conversation, and so are messages
and conversations: the answer is what follows the last turn of the user or a tool. Follows
https://huggingface.co/docs/trl/dataset_formats and the data README of LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from luthier.core.extensions import DataFormat, Row, RowError
from luthier.core.hookspecs import hookimpl
from luthier.core.rows import (
    Turn,
    answer_text,
    answer_turns,
    assistant,
    first_of,
    instruction_turns,
    missing,
    pair_of,
    prompt_turns,
    tools_of,
    with_system,
)
from luthier.core.tagged import Tags, tagged_turns

LABELS: Final = ("label", "kto_tag")
PAIRS: Final = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
WORDS: Final = frozenset(("true", "false", "0", "1", "yes", "no", "good", "bad", "desirable", "undesirable"))
CONVERSATIONS: Final = ("messages", "conversations")


def detect(row: Row) -> bool:
    column = first_of(row, LABELS)
    if column is None or "chosen" in row or not _judges(row[column]):
        return False
    if "question" in row and "prompt" not in row:
        return "answer" in row and "choices" not in row and "options" not in row  # WikiQA
    return (
        pair_of(row, PAIRS) is not None
        or first_of(row, CONVERSATIONS) is not None
        or ("instruction" in row and "output" in row)
    )


def _judges(value: object) -> bool:
    """Whether it is a judgement and not a class; a word is one as well, which `convert` then refuses by name."""
    return value in (0, 1) or (isinstance(value, str) and value.strip().lower() in WORDS)


def convert(row: Row, options: Tags) -> Row:
    """The canonical unpaired preference; raises RowError naming the column that is missing, empty or of a wrong type."""
    label = _label(row)
    prompt, completion = _parts(row, options)
    messages = with_system(prompt, row)
    return {"messages": messages, "completion": completion, "label": label, **tools_of(row)}


def _label(row: Row) -> bool:
    column = first_of(row, LABELS)
    if column is None:
        raise missing(row, LABELS[0])
    value = row[column]
    if isinstance(value, bool):
        return value
    if type(value) is int and value in (0, 1):
        return value == 1
    raise RowError(f"must be true or false, or 1 or 0, not {value!r:.40}", column=column)


def _parts(row: Row, options: Tags) -> tuple[list[Turn], list[Turn]]:
    column = first_of(row, CONVERSATIONS)
    if column is not None:
        return _divide(tagged_turns(row[column], column, options), column)
    if "instruction" in row:
        return instruction_turns(row), [assistant(answer_text(row, "output"))]
    prompt, completion = pair_of(row, PAIRS) or (PAIRS[1] if "response" in row else PAIRS[0])
    answer = answer_turns(row, completion)
    if answer[0]["role"] != "assistant":
        return _divide(answer, completion)
    return prompt_turns(row, prompt), answer


def _divide(messages: list[Turn], column: str) -> tuple[list[Turn], list[Turn]]:
    """The conversation before its last answer, and that answer; raises RowError when either is missing."""
    asked = max((index for index, message in enumerate(messages) if message["role"] != "assistant"), default=-1)
    if asked < 0 or asked == len(messages) - 1:
        what = "has no prompt" if asked < 0 else "does not end with an answer"
        raise RowError(f"{what}: a label is about the answer that ends a conversation", column=column)
    return messages[: asked + 1], messages[asked + 1 :]


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="unpaired",
        summary="An answer and whether it is a good one.",
        kind="unpaired",
        columns=(
            "label or kto_tag, and prompt and completion or response; messages or conversations; instruction and output, "
            "optional input and history; question and answer; optional system, tools"
        ),
        detect=detect,
        convert=convert,
        config=Tags,
        priority=20,
    )
