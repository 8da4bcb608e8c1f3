"""TRL's preference rows, and what all the formats of this plugin share: where the prompt ends, and the margin.

    chosen      [user, assistant: Basalt.]  --.   the longest beginning that both have, up to an answer: the prompt
    rejected    [user, assistant: Oak.]     --'   what follows in each: the two answers

A `chosen` that begins with the user or the system is a whole conversation and says its prompt itself; a prompt column beside
it (as in UltraFeedback binarized) repeats that, and is not used.
"""

from __future__ import annotations

from typing import Any, Final

from luthier.core.extensions import Row, RowError
from luthier.core.rows import SYSTEM_COLUMNS, Turn, answer_turns, first_of, prompt_turns, shown_type, tools_of, with_system

PROMPTS: Final = ("prompt", "question", "query", "input")
SCORES: Final = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
)


def convert(row: Row) -> Row:
    """The canonical preference; raises RowError naming the column that is missing, empty or of a wrong type."""
    chosen, rejected = answer_turns(row, "chosen"), answer_turns(row, "rejected")
    if chosen[0]["role"] != "assistant" and rejected[0]["role"] != "assistant":
        prompt, chosen, rejected = divide(chosen, rejected)
    else:
        column = first_of(row, PROMPTS) or PROMPTS[0]
        prompt = prompt_turns(row, column)
        chosen, rejected = _after(prompt, chosen, "chosen"), _after(prompt, rejected, "rejected")
    return preference(row, prompt, chosen, rejected)


def preference(row: Row, prompt: list[Turn], chosen: list[Turn], rejected: list[Turn]) -> Row:
    """The canonical row, with the row's system text, tools and margin. Answers that are the same are noted when they are
    tokenised, as TRL takes them."""
    messages = with_system(prompt, row, SYSTEM_COLUMNS)
    return {"messages": messages, "chosen": chosen, "rejected": rejected, **tools_of(row), **margin(row)}


def divide(chosen: list[Turn], rejected: list[Turn]) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """Prompt and answers of two whole conversations; raises RowError when they have no beginning in common."""
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    # Both go on with an answer: where one of them ends here, or they go on with the user, the prompt is shorter.
    while same and not (_answers(chosen, same) and _answers(rejected, same)):
        same -= 1
    if not same:
        raise RowError("has no beginning with a prompt in common with chosen", column="rejected")
    return chosen[:same], chosen[same:], rejected[same:]


def margin(row: Row) -> dict[str, float]:
    """{"margin": chosen less rejected} where the row has scores or a margin, else {}."""
    if row.get("margin") is not None:
        return {"margin": _number(row, "margin")}
    for better, worse in SCORES:
        if row.get(better) is not None and row.get(worse) is not None:
            return {"margin": _number(row, better) - _number(row, worse)}
    return {}


def _number(row: Row, column: str) -> float:
    value: Any = row[column]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"must be a number, not {shown_type(value)}", column=column)
    return float(value)


def _answers(messages: list[Turn], index: int) -> bool:
    return index < len(messages) and messages[index]["role"] == "assistant"


def _after(prompt: list[Turn], answer: list[Turn], column: str) -> list[Turn]:
    """An answer without the prompt, where it repeats it; raises RowError when it begins with another one."""
    count = len(prompt)
    answer = answer[count:] if len(answer) > count and answer[:count] == prompt else answer
    if answer[0]["role"] != "assistant":
        raise RowError("begins neither with an answer nor with the prompt", column=column)
    return answer
