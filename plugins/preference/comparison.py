"""Two answers side by side, and a column that says which of them is better.

    {"prompt": ..., "response_0": ..., "response_1": ..., "better_response_id": 1}        PKU-Alignment/PKU-SafeRLHF
    {"conversation_a": [...], "conversation_b": [...], "winner": "model_a"}              lmsys/chatbot_arena_conversations
    {"history": ..., "human_ref_A": ..., "human_ref_B": ..., "labels": 1}                stanfordnlp/SHP (1: A is better)

A tie says nothing about which is better: such a row is an error, which `data.bad_rows: drop` counts and leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from luthier.core.extensions import Row, RowError
from luthier.core.options import option
from luthier.core.rows import answer_turns, missing, prompt_turns
from luthier.plugins.preference.pairs import divide, preference


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Columns, and what the verdict says where the first or the second answer is better; no prompt: whole conversations."""

    prompt: str
    first: str
    second: str
    verdict: str
    first_is_better: Any
    second_is_better: Any


SHAPES: Final = (
    Shape(
        prompt="prompt", first="response_0", second="response_1", verdict="better_response_id", first_is_better=0,
        second_is_better=1,
    ),
    Shape(
        prompt="history", first="human_ref_A", second="human_ref_B", verdict="labels", first_is_better=1, second_is_better=0
    ),
    Shape(
        prompt="", first="conversation_a", second="conversation_b", verdict="winner", first_is_better="model_a",
        second_is_better="model_b",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Where the verdict stands."""

    verdict: str | None = option(
        None, "The column that says which answer is better: `safer_response_id` in PKU-SafeRLHF; unset takes the usual one."
    )


def detect(row: Row) -> bool:
    return _shape(row) is not None


def convert(row: Row, options: ComparisonConfig) -> Row:
    """The canonical preference; raises RowError naming the column, also for a tie."""
    shape = _shape(row)
    if shape is None:
        raise missing(row, SHAPES[0].verdict)
    column = options.verdict or shape.verdict
    if column not in row:
        raise missing(row, column)
    # 1 == True: a truth value is no verdict.
    verdict = None if isinstance(row[column], bool) else row[column]
    if verdict not in (shape.first_is_better, shape.second_is_better):
        words = f"{shape.first_is_better!r} or {shape.second_is_better!r}"
        raise RowError(f"does not say which answer is better: {row[column]!r:.40} is not {words}", column=column)
    names = (shape.first, shape.second) if verdict == shape.first_is_better else (shape.second, shape.first)
    chosen, rejected = (answer_turns(row, name) for name in names)
    if shape.prompt:
        return preference(row, prompt_turns(row, shape.prompt), chosen, rejected)
    return preference(row, *divide(chosen, rejected))


def _shape(row: Row) -> Shape | None:
    return next((shape for shape in SHAPES if shape.first in row and shape.second in row and shape.verdict in row), None)
