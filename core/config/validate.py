"""Strict validation of option dataclasses: unknown keys with a suggestion, types without coercion, bounds.

Types are checked by pydantic on the JSON form, with `extra="forbid"` set on the class: a plain `TypeAdapter(dataclass)`
drops unknown keys without a word.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from luthier.core.config.types import dataclasses_in, expand_shorthand, hint_at, type_text
from luthier.core.errors import PlanRefused, Problem
from luthier.core.frozen import thaw
from luthier.core.options import out_of_bounds
from luthier.core.serial import hints_of

T = TypeVar("T")


def dotted(where: str, path: tuple[str | int, ...]) -> str:
    """("data", "train", 0, "path") becomes "data.train[0].path", below `where`."""
    text = where
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def suggest(word: str, known: list[str]) -> str:
    """A "did you mean" sentence, or the list of what there is."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"known keys: {', '.join(known)}" if known else "it takes no options"


def parse_options(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls`; raises PlanRefused with every problem of these values."""
    if not isinstance(values, Mapping):
        raise PlanRefused([Problem(where=where, reason=f"must be a mapping, got {shown(values)}")])
    from pydantic import ValidationError

    plain = expand_shorthand(cls, thaw(values))
    try:
        parsed = cast(T, adapter_of(cls).validate_json(json.dumps(plain), strict=True))
    except ValidationError as error:
        problems = {describe_error(cls, dict(item), where) for item in error.errors(include_url=False)}
        raise PlanRefused(sorted(problems, key=lambda problem: problem.where)) from None
    except (TypeError, ValueError) as error:
        raise PlanRefused([Problem(where=where, reason=f"cannot be read: {error}")]) from None
    problems = set(check_bounds(parsed, where))
    if problems:
        raise PlanRefused(sorted(problems, key=lambda problem: problem.where))
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


def describe_error(cls: type, error: dict[str, Any], where: str) -> Problem:
    """One pydantic error in the words of our users."""
    location = tuple(part for part in error["loc"])
    kind = error["type"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        hint, path, _ = hint_at(cls, location[:-1])
        owner = dataclasses_in(hint)[0]
        known = [field.name for field in dataclasses.fields(owner)]
        word = str(location[-1])
        return Problem(where=dotted(where, (*path, word)), reason="unknown key", fix=suggest(word, known))
    hint, path, _ = hint_at(cls, location)
    place = dotted(where, path)
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return Problem(where=place, reason=f"is required: {type_text(hint)}")
    if kind in ("value_error", "assertion_error"):
        return Problem(where=place, reason=str(error.get("ctx", {}).get("error", error["msg"])))
    return Problem(where=place, reason=f"must be {type_text(hint)}, got {shown(error['input'])}")


def shown(value: Any) -> str:
    """A value with its type, cut to a readable length."""
    text = repr(value)
    kind = {"str": "text", "int": "a number", "float": "a number", "dict": "a mapping", "list": "a list"}
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind.get(type(value).__name__, type(value).__name__)})"


def check_bounds(instance: Any, where: str) -> list[Problem]:
    """Problems of the bounds declared with `option()`, in nested sections too."""
    problems: list[Problem] = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        place = dotted(where, (field.name,))
        wrong = out_of_bounds(field, value)
        if wrong:
            problems.append(Problem(where=place, reason=wrong))
        for index, item in enumerate(value if isinstance(value, tuple) else (value,)):
            if dataclasses.is_dataclass(item) and not isinstance(item, type):
                problems += check_bounds(item, dotted(place, (index,)) if isinstance(value, tuple) else place)
    return problems
