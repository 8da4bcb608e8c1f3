"""Strict validation of option dataclasses: unknown keys with a suggestion, types without coercion, bounds.

Types are checked by pydantic on the JSON form, with `extra="forbid"` set on the class: a plain `TypeAdapter(dataclass)`
drops unknown keys without a word.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal, TypeVar, cast

from luthier.core.config.plain import below, plain_data, shown
from luthier.core.config.types import (
    Place,
    branches,
    dataclasses_in,
    expand_shorthand,
    inside,
    is_section,
    place_of,
    type_text,
)
from luthier.core.errors import PlanRefused, Problem
from luthier.core.options import DOC, out_of_bounds
from luthier.core.serial import hints_of

T = TypeVar("T")

UNKNOWN: Final = ("unexpected_keyword_argument", "extra_forbidden")
MISSING: Final = ("missing", "missing_argument", "missing_keyword_only_argument")
OWN_WORDS: Final = ("value_error", "assertion_error")

UNKNOWN_KEY: Final = "unknown key"
REQUIRED: Final = "is required"


def dotted(where: str, path: Iterable[str | int]) -> str:
    """("data", "train", 0, "path") becomes "data.train[0].path", below `where`."""
    text = where
    for part in path:
        text = below(text, part)
    return text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, whatever its case; None when none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def suggest(word: str, known: Sequence[str]) -> str:
    """A "did you mean" sentence, or the list of what there is."""
    near = nearest(word, known)
    if near:
        return f"did you mean `{near}`?"
    return f"known keys: {', '.join(known)}" if known else "it takes no options"


def parse_options(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls`; raises PlanRefused with every problem of these values."""
    if not isinstance(values, Mapping):
        hint: Any = cls
        raise PlanRefused([Problem(where=where, reason=f"must be {type_text(hint)}, got {shown(values)}")])
    from pydantic import ValidationError

    plain = expand_shorthand(cls, plain_data(values, where))
    problems: list[Problem] = []
    parsed: T | None = None
    try:
        parsed = cast(T, adapter_of(cast(Any, cls)).validate_json(json.dumps(plain), strict=True))
    except ValidationError as error:
        found = relevant(cls, [dict(item) for item in error.errors(include_url=False)])
        # A union's branches all fail on the same value; together they are one problem.
        problems = without_misspelt(list(dict.fromkeys(describe_error(cls, item, where) for item in found)))
    except Exception as error:
        # pydantic turns a ValueError of `__post_init__` into a ValidationError; anything else is no fault of the user.
        culprit = f"{cls.__module__}.{cls.__qualname__}"
        reason = f"the options cannot be read ({type(error).__name__}: {error}); this is a defect of {culprit}"
        raise PlanRefused([Problem(where=where, reason=reason, kind="environment")]) from None
    wrong = {problem.where for problem in problems}
    problems += [problem for problem in check_bounds(cls, plain, where) if problem.where not in wrong]
    if problems or parsed is None:
        raise PlanRefused(problems)
    return parsed


@cache
def adapter_of(cls: type) -> Any:
    """The pydantic validator of a standard-library dataclass, made strict about unknown keys, nested ones too."""
    from pydantic import ConfigDict, TypeAdapter

    pending, seen = [cls], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if "__pydantic_config__" not in vars(current):
            current.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[attr-defined]
        pending += [nested for hint in hints_of(current).values() for nested in dataclasses_in(hint)]
    return TypeAdapter(cls)


def relevant(cls: type, errors: list[dict[str, Any]], depth: int = 0) -> list[dict[str, Any]]:
    """Without the errors of those branches of a union that were not meant.

    Of `float | tuple[Source, ...]`, a list with a wrong item is an error of the second branch alone: where errors lie
    inside a branch, the value has its shape; among several of the same shape, the one whose keys fit was meant.
    """
    kept: list[dict[str, Any]] = []
    groups: dict[tuple[object, ...], dict[str, list[dict[str, Any]]]] = {}
    for error in errors:
        choices = place_of(cls, error["loc"]).choices
        if len(choices) <= depth:
            kept.append(error)
            continue
        position, branch = choices[depth]
        groups.setdefault(error["loc"][:position], {}).setdefault(branch, []).append(error)
    for prefix, by_branch in groups.items():
        inside = [found for found in by_branch.values() if any(len(error["loc"]) > len(prefix) + 1 for error in found)]
        if inside:
            kept += relevant(cls, min(inside, key=_misfit), depth + 1)
        else:
            kept += [found[0] for found in by_branch.values()]
    return kept


def _misfit(errors: Sequence[dict[str, Any]]) -> tuple[int, int]:
    return sum(error["type"] in (*UNKNOWN, *MISSING) for error in errors), len(errors)


def describe_error(cls: type, error: dict[str, Any], where: str) -> Problem:
    """One pydantic error in the words of our users."""
    place = place_of(cls, error["loc"])
    at = dotted(where, place.path)
    kind = error["type"]
    if kind in UNKNOWN:
        known = [field.name for field in dataclasses.fields(place.section)]
        return Problem(where=at, reason=UNKNOWN_KEY, fix=suggest(str(place.path[-1]), known))
    if kind in MISSING:
        return Problem(where=at, reason=REQUIRED, fix=required_fix(place.section, place.path[-1], place.hint))
    if kind in OWN_WORDS:
        return Problem(where=at, reason=str(error.get("ctx", {}).get("error", error["msg"])))
    return Problem(
        where=at,
        reason=f"must be {type_text(place.hint)}, got {shown(error['input'])}",
        fix=_type_fix(place, error["input"]),
    )


def required_fix(section: type, key: str | int, hint: Any) -> str:
    """What to write for a key that is missing: its type, and its documentation."""
    docs = {field.name: field.metadata.get(DOC, "") for field in dataclasses.fields(section)}
    return f"give `{key}`, {type_text(hint)}. {docs.get(str(key), '')}".rstrip()


def without_misspelt(problems: Sequence[Problem]) -> list[Problem]:
    """Leaves out "model is required" where "modle: unknown key, did you mean `model`?" already says it."""
    meant = {
        (problem.where.rpartition(".")[0], problem.fix.removeprefix("did you mean `").removesuffix("`?"))
        for problem in problems
        if problem.reason == UNKNOWN_KEY
    }
    return [
        problem
        for problem in problems
        if problem.reason != REQUIRED or (problem.where.rpartition(".")[0], problem.where.rpartition(".")[2]) not in meant
    ]


def _type_fix(place: Place, value: Any) -> str:
    """The nearest value of the right type, where one can be told."""
    possible = branches(place.hint)
    words = [str(word) for branch in possible if typing.get_origin(branch) is Literal for word in typing.get_args(branch)]
    if isinstance(value, str):
        near = nearest(value, words)
        if near:
            return f"did you mean `{near}`?"
        number = _as_number(value)
        if number is not None and (float in possible or (int in possible and number.is_integer())):
            return f"write it without quotes: {value.strip()}"
    elif isinstance(value, bool | int | float) and (str in possible or str(value) in words):
        return "put it in quotes, where it is meant as text"
    elif isinstance(value, Mapping | list | tuple):
        return ""
    if isinstance(value, float) and value.is_integer() and int in possible:
        return f"write {int(value)}"
    return ""


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def check_bounds(cls: type, plain: Mapping[str, Any], where: str) -> list[Problem]:
    """Problems of the bounds declared with `option()`: of single numbers, of lists of them, and in nested sections."""
    hints = hints_of(cls)
    problems: list[Problem] = []
    for field in dataclasses.fields(cls):
        if field.name in plain:
            problems += _bounds_of(field, hints[field.name], plain[field.name], below(where, field.name))
    return problems


def _bounds_of(field: dataclasses.Field[Any], hint: Any, value: Any, where: str) -> list[Problem]:
    if isinstance(value, Mapping):
        section = next((branch for branch in branches(hint) if is_section(branch)), None)
        if section is not None:
            return check_bounds(section, value, where)
    if isinstance(value, Mapping | list):
        parts: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        return [
            problem
            for part, item in parts
            for problem in _bounds_of(field, _hint_inside(hint, part), item, below(where, part))
        ]
    wrong = out_of_bounds(field, value)
    return [Problem(where=where, reason=wrong)] if wrong else []


def _hint_inside(hint: Any, part: str | int) -> Any:
    return next((found for branch in branches(hint) for found in inside(branch, part)), Any)
