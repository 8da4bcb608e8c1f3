"""Alpaca rows: instruction, input, output, with optional history and system, as LLaMA-Factory reads them.

    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day",
     "history": [["Who are you?", "A translator."]], "system": "Be brief."}

The input is joined to the instruction by a newline. Every answer is learned, those of the history too. Columns that are not
named here are not used. Follows https://github.com/tatsu-lab/stanford_alpaca and the data README of LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from luthier.core.extensions import DataFormat, Row, RowError
from luthier.core.hookspecs import hookimpl


def detect(row: Row) -> bool:
    return "instruction" in row and "output" in row


def convert(row: Row) -> Row:
    """The canonical conversation; raises RowError naming the column."""
    instruction, answer = _text(row, "instruction", required=True), _text(row, "output", required=True)
    query = "\n".join(part for part in (instruction, _text(row, "input")) if part)
    if not query:
        raise RowError("is empty, and so is the input: there is nothing to answer", column="instruction")
    if not answer.strip():
        raise RowError("is an empty answer", column="output")
    messages = [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
    for question, reply in reversed(list(_history(row))):
        messages[:0] = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    system = _text(row, "system")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages}


def _text(row: Row, column: str, *, required: bool = False) -> str:
    if required and column not in row:
        raise RowError(f"is missing; the row has: {', '.join(map(str, row)) or 'nothing'}", column=column)
    value = row.get(column)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise RowError(f"must be a string, got {value!r:.40}", column=column)
    return value


def _history(row: Row) -> Iterator[tuple[str, str]]:
    history = row.get("history")
    if history is None:
        return
    if not isinstance(history, list):
        raise RowError(f"must be a list of [question, answer] pairs, got {history!r:.40}", column="history")
    for index, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError(f"must be a [question, answer] pair of strings, got {pair!r:.40}", column=f"history[{index}]")
        if not pair[1].strip():
            raise RowError("is an empty answer", column=f"history[{index}][1]")
        yield pair[0], pair[1]


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
