"""Type hints as people say them: for error messages and for the documentation of options."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from luthier.core.serial import hints_of

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null", dict: "a mapping"}


def type_text(hint: Any) -> str:
    """`int | None` becomes "a whole number or null", `Literal["a", "b"]` becomes "one of a, b"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        words = [type_text(argument) for argument in arguments]
        if "a number" in words and "a whole number" in words:
            words.remove("a whole number")
        return " or ".join(words)
    if origin in (tuple, list, frozenset, set):
        return f"a list of {type_text(arguments[0])}" if arguments else "a list"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if dataclasses.is_dataclass(hint):
        shorthand = getattr(hint, "SHORTHAND", None)
        return f"a mapping (or text, for its `{shorthand}`)" if shorthand else "a mapping"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses that a hint mentions, for walking into nested sections."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in dataclasses_in(argument)]


def expand_shorthand(hint: Any, value: Any) -> Any:
    """Where a section may be written as one string (`model: gpt2`), the mapping that the string stands for."""
    nested = dataclasses_in(hint)
    if not nested:
        return value
    cls = nested[0]
    if isinstance(value, str) and hasattr(cls, "SHORTHAND"):
        return {cls.SHORTHAND: value}
    if isinstance(value, list | tuple):
        return [expand_shorthand(cls, item) for item in value]
    if isinstance(value, Mapping):
        hints = hints_of(cls)
        return {key: expand_shorthand(hints.get(key), item) for key, item in value.items()}
    return value


def hint_at(cls: type, path: tuple[str | int, ...]) -> tuple[Any, tuple[str | int, ...], type]:
    """Follow an error's location into nested dataclasses.

    Returns the hint at the deepest part that names a field or an item, that part of the path, and the dataclass it
    belongs to; what pydantic adds for the branches of a union is left out.
    """
    hint: Any = cls
    owner = cls
    kept: list[str | int] = []
    for part in path:
        nested = dataclasses_in(hint)
        if isinstance(part, int):
            kept.append(part)
        elif nested and part in hints_of(nested[0]):
            owner = nested[0]
            hint = hints_of(owner)[part]
            kept.append(part)
    return hint, tuple(kept), owner
