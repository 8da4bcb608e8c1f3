"""LLaMA-Factory's ranking rows, in both of its styles.

    {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {...}}
    {"instruction": "Greet.", "input": "", "chosen": "Hello!", "rejected": "No."}
    {"instruction": "Greet.", "input": "", "output": ["Hello!", "No."]}

Input is joined to the instruction by a newline, as in the format alpaca. Follows the data README of
https://github.com/hiyouga/LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Mapping

from luthier.core.extensions import Row, RowError
from luthier.core.rows import Turn, answer_turns, first_of, instruction_turns, require
from luthier.core.tagged import Tags, tagged_turns
from luthier.plugins.preference.pairs import preference

CONVERSATIONS = ("conversations", "messages")


def detect(row: Row) -> bool:
    if "chosen" in row and "rejected" in row:
        tagged = "conversations" in row or ("messages" in row and isinstance(row["chosen"], Mapping))
        return tagged or ("instruction" in row and "prompt" not in row)
    return "instruction" in row and isinstance(row.get("output"), list | tuple)


def convert(row: Row, options: Tags) -> Row:
    """The canonical preference; raises RowError naming the column that is missing, empty or of a wrong type."""
    column = first_of(row, CONVERSATIONS)
    if column is not None:
        prompt = tagged_turns(row[column], column, options)
        if prompt[-1]["role"] == "assistant":
            raise RowError("ends with an answer: the answers are chosen and rejected", column=f"{column}[{len(prompt) - 1}]")
        return preference(row, prompt, _tagged(row, "chosen", options), _tagged(row, "rejected", options))
    prompt = instruction_turns(row)
    if "chosen" in row or "rejected" in row:
        return preference(row, prompt, answer_turns(row, "chosen"), answer_turns(row, "rejected"))
    answers = require(row, "output")
    if not isinstance(answers, list | tuple) or len(answers) != 2:
        raise RowError("must be a list of the better and the worse answer", column="output")
    flat = {f"output[{index}]": answer for index, answer in enumerate(answers)}
    return preference(row, prompt, answer_turns(flat, "output[0]"), answer_turns(flat, "output[1]"))


def _tagged(row: Row, column: str, options: Tags) -> list[Turn]:
    value = require(row, column)
    if isinstance(value, str):
        return answer_turns(row, column)
    answer = tagged_turns([value] if isinstance(value, Mapping) else value, column, options)
    if answer[0]["role"] != "assistant":
        raise RowError("must be an answer of the assistant", column=column)
    return answer
