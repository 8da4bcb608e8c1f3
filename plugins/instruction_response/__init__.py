"""An instruction with its context and the response, as Dolly has them; and task definitions with inputs and targets.

    {"instruction": "Which rock is it?", "context": "Lava cools into basalt.", "response": "Basalt."}      Dolly
    {"definition": "Name the rock.", "inputs": "Lava cools into basalt.", "targets": "Basalt."}      Natural Instructions

The context follows the instruction after a blank line. `instruction` with `output` is the format alpaca.
Follows https://huggingface.co/datasets/databricks/databricks-dolly-15k.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from luthier.core.extensions import DataFormat, Row
from luthier.core.hookspecs import hookimpl
from luthier.core.rows import answer_text, assistant, filled_text, first_of, joined, optional_text, user, with_system

CONTEXTS: Final = ("context", "input")
ANSWERS: Final = ("response", "completion", "answer")


def detect(row: Row) -> bool:
    if "definition" in row:
        return "inputs" in row and "targets" in row
    # A label says that not every answer is a good one; options beside the answer make it a choice.
    others = ("output", "label", "kto_tag", "chosen", "rejected", "choices", "options")
    return "instruction" in row and first_of(row, ANSWERS) is not None and first_of(row, others) is None


def convert(row: Row) -> Row:
    """The canonical conversation; raises RowError naming the column that is missing, empty or no text."""
    if "definition" in row:
        asked = joined(filled_text(row, "definition"), filled_text(row, "inputs"))
        answer = answer_text(row, "targets")
    else:
        asked = joined(filled_text(row, "instruction"), optional_text(row, first_of(row, CONTEXTS)))
        answer = answer_text(row, first_of(row, ANSWERS) or ANSWERS[0])
    return {"messages": with_system([user(asked), assistant(answer)], row)}


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="instruction_response",
        summary="An instruction, its context and the response (Dolly); a task's definition, inputs and targets.",
        kind="conversation",
        columns=(
            "instruction and response, completion or answer; optional context or input, system; or definition, inputs and "
            "targets"
        ),
        detect=detect,
        convert=convert,
        priority=-10,
    )
