"""What is scored, what comes of it, and the error that stops a run when a term gives something else than numbers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from luthier.core.errors import DataError, LuthierError

if TYPE_CHECKING:
    from luthier.core.data import Examples
    from luthier.core.generation import Answer

SHOWN: Final = 60
GIVE_REFERENCES: Final = "give every row one (columns answer, solution, ground_truth or reference), or take another reward"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One answer.

    prompt      the prompt as the model read it, special tokens included
    text        the answer without special tokens
    ids         the answer's tokens, with the one that ended it where it came
    prompt_ids  the prompt's tokens
    finished    whether the answer ended by itself
    reference   what the row says to judge by, as text; None where it says nothing
    row         number of the row among those of the run, from 0
    messages    the prompt's messages, and `tools` what it may call, where the row has them
    """

    prompt: str
    text: str
    ids: Sequence[int]
    prompt_ids: Sequence[int]
    finished: bool
    reference: str | None
    row: int
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Any] | None = None


def scored(rows: Examples, row: int, answer: Answer, tokenizer: Any) -> Scored:
    """An answer to prompt number `row` of `rows`."""
    prompt_ids = rows[row]["input_ids"].tolist()
    beside = rows.beside(row)
    return Scored(
        prompt=tokenizer.decode(prompt_ids, skip_special_tokens=False),
        text=tokenizer.decode(answer.ids, skip_special_tokens=True),
        ids=answer.ids,
        prompt_ids=prompt_ids,
        finished=answer.finished,
        reference=rows.reference(row),
        row=row,
        messages=beside.get("messages"),
        tools=beside.get("tools"),
    )


@dataclass(frozen=True, kw_only=True)
class RewardBatch:
    """`total` is the weighted sum of `terms`, which are not weighted; each has a number for every answer."""

    total: list[float]
    terms: dict[str, list[float]]


Score: TypeAlias = Callable[[Sequence[Scored]], Any]


class RewardError(LuthierError):
    """A term that failed or gave no finite numbers; the stage saves a checkpoint and stops.

    `term` is its name, `rows` the rows that it was about.
    """

    def __init__(self, term: str, message: str, *, rows: Sequence[int] = (), fix: str = "") -> None:
        self.term, self.rows = term, tuple(rows)
        super().__init__(message, where=f"reward {term}", fix=fix)


@dataclass(frozen=True, kw_only=True)
class OpenTerm:
    """A term ready to score; `score` gives one number for each answer."""

    name: str
    weight: float
    score: Score
    needs_reference: bool = False


class Rewards:
    """The terms of a run's reward. `needs_reference` names those that judge by a row's reference."""

    def __init__(self, terms: Sequence[OpenTerm]) -> None:
        self.terms = tuple(terms)

    @property
    def needs_reference(self) -> tuple[str, ...]:
        return tuple(term.name for term in self.terms if term.needs_reference)

    def check(self, rows: Examples) -> None:
        """Raises DataError for a prompt without the reference that a term compares with, before anything has trained."""
        if not self.needs_reference:
            return
        without = [row for row in range(rows.rows) if rows.reference(row) is None]
        if without:
            said = rows.beside(without[0])["messages"][-1]["content"]
            raise DataError(
                f"{len(without)} of {rows.rows} prompts have no reference, which the reward {self.needs_reference[0]} "
                f"compares with; the first is row {without[0]} ({shown(said)})",
                where="data",
                fix=GIVE_REFERENCES,
            )

    def score(self, answers: Sequence[Scored]) -> RewardBatch:
        """Raises RewardError naming term and rows for whatever is no list of as many finite numbers."""
        if not answers:
            return RewardBatch(total=[], terms={term.name: [] for term in self.terms})
        found = {term.name: _numbers(term, answers) for term in self.terms}
        total = [sum(term.weight * found[term.name][at] for term in self.terms) for at in range(len(answers))]
        return RewardBatch(total=total, terms=found)


def _numbers(term: OpenTerm, answers: Sequence[Scored]) -> list[float]:
    rows = [answer.row for answer in answers]
    if term.needs_reference:
        without = next((answer for answer in answers if answer.reference is None), None)
        if without is not None:
            raise RewardError(
                term.name,
                f"{described(without)} has no reference to compare the answer with",
                rows=[without.row],
                fix=GIVE_REFERENCES,
            )
    given = term.score(answers)
    # Arrays and tensors of one dimension are lists, too.
    values = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(values, list | tuple):
        kind = type(values).__name__
        raise RewardError(term.name, f"gave {kind}, not a list of numbers, for {_rows(rows)}", rows=rows)
    if len(values) != len(answers):
        count = f"{len(values)} number{'s' if len(values) != 1 else ''} for {len(answers)} answers"
        raise RewardError(term.name, f"gave {count}, of {_rows(rows)}", rows=rows)
    for answer, value in zip(answers, values, strict=True):
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise RewardError(
                term.name,
                f"gave {value!r:.40}, which is no finite number, for {described(answer)}",
                rows=[answer.row],
                fix=f"the answer was {shown(answer.text)}",
            )
    return [float(value) for value in values]


def described(answer: Scored) -> str:
    """A row as messages call it: its number, and how its prompt ends."""
    message = answer.messages[-1].get("content") if answer.messages else None
    return f"row {answer.row} ({shown(message or answer.prompt)})"


def shown(text: str) -> str:
    """The beginning of a text, in quotes."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _rows(rows: Sequence[int]) -> str:
    distinct = sorted(set(rows))
    named = ", ".join(map(str, distinct[:8])) + (", ..." if len(distinct) > 8 else "")
    return f"row{'s' if len(distinct) > 1 else ''} {named}"


def failed(term: str, answers: Sequence[Scored], error: BaseException, where: str = "", fix: str = "") -> RewardError:
    """The error about a term that raised another one."""
    rows = [answer.row for answer in answers]
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    place = f" in {where}" if where else ""
    return RewardError(term, f"failed on {_rows(rows)}{place}: {message}", rows=rows, fix=fix)
