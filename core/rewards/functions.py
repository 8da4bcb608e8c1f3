"""The terms that need nothing but the answer: a pattern, a length, the reference, JSON.

regex        1 or 0
length       min(1, n / min, max / n) ** power     n words or tokens; with both units, the smaller of the two
exact_match  1 or 0
json_valid   0, or (1 + keys found) / (1 + keys asked for)
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from typing import Any, Final

from luthier.core.rewards.config import ExactMatchTerm, JsonValidTerm, LengthTerm, RegexTerm
from luthier.core.rewards.scoring import Score, Scored

_NO_PUNCTUATION: Final = {ord(mark): None for mark in string.punctuation}


def regex(term: RegexTerm) -> Score:
    """Of the answer's text, with white space at its ends taken off."""
    pattern = re.compile(term.pattern, re.IGNORECASE if term.ignore_case else 0)
    matches = pattern.search if term.match == "search" else pattern.fullmatch

    def score(answers: Sequence[Scored]) -> list[float]:
        return [float(matches(answer.text.strip()) is not None) for answer in answers]

    return score


def length(term: LengthTerm) -> Score:
    def score(answers: Sequence[Scored]) -> list[float]:
        return [
            min(
                within(len(answer.text.split()), term.min_words, term.max_words),
                within(len(answer.ids) - int(answer.finished), term.min_tokens, term.max_tokens),
            )
            ** term.power
            for answer in answers
        ]

    return score


def within(count: int, least: int | None, most: int | None) -> float:
    """1 between the bounds, else the ratio to the bound that is missed: between 0 and 1."""
    if least is not None and count < least:
        return count / least
    if most is not None and count > most:
        return most / count
    return 1.0


def exact_match(term: ExactMatchTerm) -> Score:
    extract = re.compile(term.extract) if term.extract is not None else None

    def plain(text: str) -> str:
        if term.ignore_punctuation:
            text = text.translate(_NO_PUNCTUATION)
        return " ".join((text.casefold() if term.ignore_case else text).split())

    def score(answers: Sequence[Scored]) -> list[float]:
        found = []
        for answer in answers:
            text: str | None = answer.text
            if extract is not None:
                matches = list(extract.finditer(answer.text))
                text = matches[-1].group(1 if extract.groups else 0) if matches else None
            found.append(float(text is not None and plain(text) == plain(answer.reference or "")))
        return found

    return score


def json_valid(term: JsonValidTerm) -> Score:
    def score(answers: Sequence[Scored]) -> list[float]:
        return [_valid(answer.text, term.keys) for answer in answers]

    return score


def _valid(text: str, keys: Sequence[str]) -> float:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return 0.0
    found = sum(key in value for key in keys) if isinstance(value, dict) else 0
    return (1 + found) / (1 + len(keys))


def _no_constant(name: str) -> Any:
    # NaN and Infinity are Python's, and no JSON.
    raise ValueError(name)
