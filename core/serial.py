"""Frozen dataclasses to JSON-shaped data and back, driven by their type hints alone."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

from luthier.core.frozen import FrozenDict, freeze

T = TypeVar("T")


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Resolved type hints of a dataclass."""
    return typing.get_type_hints(cls)


def to_plain(value: Any) -> Any:
    """Dicts, lists, strings, numbers, booleans and None; sets become sorted lists, paths text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "as_written"):
            return value.as_written()
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def from_plain(cls: type[T], plain: Any) -> T:
    """The inverse of `to_plain` for a dataclass of frozen values; raises TypeError on unknown or missing fields."""
    return typing.cast(T, _build(cls, plain))


def _build(hint: Any, plain: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = hints_of(hint)
        unknown = set(plain) - {field.name for field in dataclasses.fields(hint)}
        if unknown:
            raise TypeError(f"{hint.__name__} has no field {', '.join(sorted(unknown))}")
        return hint(**{name: _build(hints[name], value) for name, value in plain.items()})
    if origin in (typing.Union, types.UnionType):
        if plain is None:
            return None
        return _build(next(option for option in arguments if option is not type(None)), plain)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_build(arguments[0], item) for item in plain)
        return tuple(_build(item_hint, item) for item_hint, item in zip(arguments, plain, strict=True))
    if origin is frozenset:
        return frozenset(_build(arguments[0], item) for item in plain)
    if origin is FrozenDict:
        return FrozenDict({key: _build(arguments[1], value) for key, value in plain.items()})
    return freeze(plain)
