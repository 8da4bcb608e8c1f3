"""Prompts without answers, for stages that let the model answer: with a reference, where there is one, to judge by.

    {"prompt": "What is 6 times 7?", "answer": "42"}        a text, or messages
    {"messages": [{"role": "user", "content": "What is 6 times 7?"}], "ground_truth": "42"}

The reference is the first of the columns answer, solution, ground_truth and reference that the row has, or `ground_truth`
inside `reward_model` (verl's data sets); it is handed on as it is, of whatever type. Rows of messages are detected where no
message is the assistant's; conversations that end with the user need the format's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from luthier.core.extensions import DataFormat, Row, RowError
from luthier.core.hookspecs import hookimpl
from luthier.core.rows import first_of, prompt_turns, tools_of, with_system

REFERENCES: Final = ("answer", "solution", "ground_truth", "reference")
# What a row with an answer has beside a prompt: such a row is another format's.
ANSWERS: Final = frozenset(
    (
        "completion", "response", "output", "text", "target", "targets", "chosen", "rejected", "label", "messages",
        "conversations", "summary", "highlights", "abstract", "choices", "options", "endings", "generated_solution",
    )
)  # fmt: skip


def detect(row: Row) -> bool:
    if "prompt" in row:
        return not ANSWERS.intersection(row)
    messages = row.get("messages")
    return (
        isinstance(messages, list | tuple)
        and bool(messages)
        and all(isinstance(message, Mapping) and message.get("role") in ("system", "user") for message in messages)
        and not ANSWERS.intersection(row) - {"messages"}
    )


def convert(row: Row) -> Row:
    """The prompt with its reference; raises RowError when it is empty or ends with an answer."""
    column = first_of(row, ("prompt", "messages")) or "prompt"
    messages = prompt_turns(row, column)
    if messages[-1]["role"] == "assistant":
        what = "ends with an answer: a prompt ends where the model is to answer"
        raise RowError(what, column=f"{column}[{len(messages) - 1}].role")
    return {"messages": with_system(messages, row), **tools_of(row), **_reference(row)}


def _reference(row: Row) -> dict[str, Any]:
    column = first_of(row, REFERENCES)
    if column is not None:
        return {} if row[column] is None else {"reference": row[column]}
    reward = row.get("reward_model")
    return {"reference": reward["ground_truth"]} if isinstance(reward, Mapping) and "ground_truth" in reward else {}


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="prompt",
        summary="A prompt without an answer, with an optional reference to judge answers by.",
        kind="prompt",
        columns="prompt or messages; optional answer, solution, ground_truth or reference, system, tools",
        detect=detect,
        convert=convert,
        priority=5,
    )
