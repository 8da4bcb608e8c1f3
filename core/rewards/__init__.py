"""What answers are judged by: terms that a stage's option `reward` names, added up with their weights.

config.py     the terms and their options          scoring.py   what is scored, and the error of a term
functions.py  a pattern, a length, the reference, JSON          python.py    a function of the user's
runs.py       a reward model that a run trained                  http.py      a scorer behind HTTP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.config.schema import Choice
from luthier.core.rewards.config import (
    REWARD_DOC,
    ExactMatchTerm,
    FunctionTerm,
    HttpTerm,
    JsonValidTerm,
    LengthTerm,
    RegexTerm,
    RunTerm,
    Term,
    check_rewards,
    parse_rewards,
    place_rewards,
    support_rewards,
)
from luthier.core.rewards.scoring import OpenTerm, RewardBatch, RewardError, Rewards, Score, Scored, scored

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime

__all__ = [
    "REWARD_DOC", "OpenTerm", "RewardBatch", "RewardError", "Rewards", "Score", "Scored", "Term",
    "check_rewards", "open_rewards", "parse_rewards", "place_rewards", "scored", "support_rewards",
]  # fmt: skip


def open_rewards(choices: Sequence[Choice], *, runtime: Runtime) -> Rewards:
    """The terms ready to score: files run, models loaded onto the run's device. Raises RewardError where one cannot be."""
    terms = []
    for name, term in parse_rewards(choices):
        needs = isinstance(term, ExactMatchTerm)
        terms.append(OpenTerm(name=name, weight=term.weight, score=open_term(name, term, runtime), needs_reference=needs))
    return Rewards(terms)


def open_term(name: str, term: Term, runtime: Runtime) -> Score:
    """One of them; `name` is what its errors say."""
    from luthier.core.rewards.functions import exact_match, json_valid, length, regex
    from luthier.core.rewards.http import http
    from luthier.core.rewards.python import python
    from luthier.core.rewards.runs import run

    match term:
        case RegexTerm():
            return regex(term)
        case LengthTerm():
            return length(term)
        case ExactMatchTerm():
            return exact_match(term)
        case JsonValidTerm():
            return json_valid(term)
        case FunctionTerm():
            return python(name, term)
        case HttpTerm():
            return http(name, term)
        case RunTerm():
            return run(name, term, runtime)
    raise TypeError(f"{type(term).__name__} is no term")
