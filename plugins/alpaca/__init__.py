"""Alpaca rows: instruction, input, output, with optional history and system, as LLaMA-Factory reads them.

    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day",
     "history": [["Who are you?", "A translator."]], "system": "Be brief."}

The input is joined to the instruction by a newline. Every answer is learned, those of the history too. Columns that are not
named here are not used. Follows https://github.com/tatsu-lab/stanford_alpaca and the data README of LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Iterable

from luthier.core.extensions import DataFormat, Row
from luthier.core.hookspecs import hookimpl
from luthier.core.rows import answer_text, assistant, instruction_turns, with_system


def detect(row: Row) -> bool:
    return "instruction" in row and "output" in row


def convert(row: Row) -> Row:
    """The canonical conversation; raises RowError naming the column."""
    turns = [*instruction_turns(row), assistant(answer_text(row, "output"))]
    return {"messages": with_system(turns, row, ("system",))}


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="alpaca",
        summary="One instruction and its output, with optional input, history and system.",
        kind="conversation",
        columns="instruction, output; optional input, history, system",
        detect=detect,
        convert=convert,
    )
