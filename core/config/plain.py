"""Outside data made plain: what YAML or a caller hands over becomes dicts, lists, text and numbers, or problems.

Everything behind this point may walk, print and hash the data freely: no cycle, no NaN, no key that is no text, no
character that cannot be written to a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final

from luthier.core.errors import PlanRefused, Problem

DEEPEST: Final = 40
MOST_VALUES: Final = 100_000
# Beyond 64 bits no option means anything, and Python itself refuses to print numbers of some thousand digits.
LARGEST: Final = 2**63 - 1


class TooMuchError(ValueError):
    """Nested too deeply (or containing itself), or too many values (YAML aliases multiply them)."""


def plain_data(value: Any, where: str = "") -> Any:
    """A copy in plain dicts and lists; paths become text. Raises PlanRefused with every value that has no place in it."""
    problems: list[Problem] = []
    try:
        copy = _Copier(problems).copy(value, where, 0)
    except TooMuchError as error:
        raise PlanRefused([Problem(where=where, reason=str(error))]) from None
    if problems:
        raise PlanRefused(problems)
    return copy


def below(where: str, part: str | int) -> str:
    """The place of an item or key: below("data.train", 0) is "data.train[0]", below("data", "train") is "data.train"."""
    if isinstance(part, int):
        return f"{where}[{part}]"
    return f"{where}.{part}" if where else part


def shown(value: Any) -> str:
    """A value with its kind, as a file would have it, cut to a readable length."""
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number of more than 64 bits"
    kinds = {str: "text", int: "a number", float: "a number"}
    kind = next((words for of, words in kinds.items() if isinstance(value, of)), "")
    if isinstance(value, Mapping):
        kind = "a mapping"
    elif isinstance(value, list | tuple):
        kind = "a list"
    try:
        text = repr(value)
    except Exception as error:
        # The value comes from anywhere, and its repr() is its own; what is wrong with it matters less than where it is.
        text = f"something that cannot be shown: {type(error).__name__}"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind or type(value).__name__})"


class _Copier:
    def __init__(self, problems: list[Problem]) -> None:
        self.problems, self.count = problems, 0

    def copy(self, value: Any, where: str, depth: int) -> Any:
        self.count += 1
        if depth > DEEPEST:
            raise TooMuchError(f"is nested more than {DEEPEST} levels deep, or contains itself")
        if self.count > MOST_VALUES:
            raise TooMuchError(f"holds more than {MOST_VALUES} values; YAML aliases (`*name`) may have multiplied them")
        if isinstance(value, Mapping):
            return self.mapping(value, where, depth)
        if isinstance(value, list | tuple):
            return [self.copy(item, below(where, index), depth + 1) for index, item in enumerate(value)]
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        reason = wrong_scalar(value)
        if reason:
            self.problems.append(Problem(where=where, reason=reason))
        return value

    def mapping(self, value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                fix = "put it in quotes, where it is meant as a name"
                self.problems.append(Problem(where=where, reason=f"a key must be text, got {shown(key)}", fix=fix))
            elif wrong_scalar(key):
                self.problems.append(Problem(where=where, reason=f"a key {wrong_scalar(key)}"))
            else:
                copy[key] = self.copy(item, below(where, key), depth + 1)
        return copy


def wrong_scalar(value: Any) -> str | None:
    """Why a single value has no place in a configuration, or None."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"must be text that can be written as UTF-8, got {ascii(value)[:60]}"
        return None
    if isinstance(value, int):
        return None if abs(value) <= LARGEST else "must fit 64 bits, this number is larger"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"must be a finite number, got {value}"
    return f"must be text, a number, true, false, null, a list or a mapping, got {shown(value)}"
