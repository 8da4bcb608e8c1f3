"""Type hints as people say them, and the way of a value or an error through them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from luthier.core.serial import hints_of

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null", dict: "a mapping"}


def type_text(hint: Any) -> str:
    """`int | None` becomes "a whole number or null", `Literal["a", "b"]` becomes "one of a, b"."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if is_union(hint):
        words = [type_text(argument) for argument in arguments]
        if "a number" in words and "a whole number" in words:
            words.remove("a whole number")
        return " or ".join(words)
    if is_list(hint):
        if len(arguments) > 1 and Ellipsis not in arguments:
            return f"a list of exactly {len(arguments)}: " + ", ".join(type_text(argument) for argument in arguments)
        return f"a list, each item {type_text(arguments[0])}" if arguments else "a list"
    if is_mapping(hint):
        return f"a mapping of names to {type_text(arguments[1])}" if arguments[1:] not in ((), (Any,)) else "a mapping"
    if dataclasses.is_dataclass(hint):
        shorthand = getattr(hint, "SHORTHAND", None)
        return f"a {shorthand} (text) or a mapping" if shorthand else "a mapping"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def is_list(hint: Any) -> bool:
    return (typing.get_origin(hint) or hint) in (tuple, list, frozenset, set)


def is_mapping(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    return isinstance(origin, type) and issubclass(origin, Mapping)


def is_section(hint: Any) -> bool:
    """A dataclass: a section with keys of its own."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def branches(hint: Any) -> tuple[Any, ...]:
    """What a value may be: the members of a union without null, any other hint alone."""
    if not is_union(hint):
        return (hint,)
    return tuple(argument for argument in typing.get_args(hint) if argument is not type(None))


def dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses that a hint mentions, for walking into nested sections."""
    if is_section(hint):
        return [hint]
    return [found for argument in typing.get_args(hint) for found in dataclasses_in(argument)]


def expand_shorthand(hint: Any, value: Any) -> Any:
    """Where a section may be written as one string (`model: gpt2`), the mapping that the string stands for.

    A single section stands for a list of one: `train: rows.jsonl` is `train: [{path: rows.jsonl}]`.
    """
    takes_text = any(branch is str for branch in branches(hint))
    for branch in branches(hint):
        if is_section(branch):
            if isinstance(value, str) and hasattr(branch, "SHORTHAND") and not takes_text:
                return {branch.SHORTHAND: value}
            if isinstance(value, Mapping):
                hints = hints_of(branch)
                return {key: expand_shorthand(hints.get(key), item) for key, item in _gathered(branch, value).items()}
        arguments = typing.get_args(branch)
        if is_list(branch) and arguments:
            if isinstance(value, list):
                return [expand_shorthand(arguments[0], item) for item in value]
            single = isinstance(value, Mapping) or (isinstance(value, str) and not takes_text)
            if single and is_section(arguments[0]) and hasattr(arguments[0], "SHORTHAND"):
                return [expand_shorthand(arguments[0], value)]
        if is_mapping(branch) and len(arguments) == 2 and isinstance(value, Mapping):
            return {key: expand_shorthand(arguments[1], item) for key, item in value.items()}
    return value


def _gathered(section: type, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """In a section with a field for the REST of its keys, those that are no fields put into it."""
    rest = getattr(section, "REST", None)
    if rest is None or rest in value:
        return value
    own = {field.name for field in dataclasses.fields(section)}
    others = {key: item for key, item in value.items() if key not in own}
    return {key: item for key, item in value.items() if key in own} | {rest: others}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a dataclass an error lies.

    `path` is the way there as a user writes it, `hint` what is expected, `section` the dataclass that the last part lies
    in, `choices` the (position, name) of every branch of a union that the location went through.
    """

    path: tuple[str | int, ...]
    hint: Any
    section: type
    choices: tuple[tuple[int, str], ...]


def place_of(cls: type, location: tuple[str | int, ...]) -> Place:
    """Follow pydantic's location of an error; `path` leaves out the names that it puts in for the branches of a union."""
    hint: Any = cls
    possible: tuple[Any, ...] = (cls,)
    section, path, choices = cls, [], []
    position = 0
    while position < len(location):
        part = location[position]
        if len(possible) > 1:
            choices.append((position, str(part)))
            named = tuple(branch for branch in possible if getattr(branch, "__name__", "") == part and is_section(branch))
            possible = named or tuple(_with_items(possible))
            position += 1
            if position == len(location):
                break
            part = location[position]
        section = next((branch for branch in possible if is_section(branch)), section)
        path.append(part)
        hint = next((found for branch in possible for found in inside(branch, part)), Any)
        possible = branches(hint)
        position += 1
    return Place(tuple(path), hint, section, tuple(choices))


def _with_items(possible: tuple[Any, ...]) -> Iterator[Any]:
    """A union is told apart by name among its sections only; of the rest, those that hold something may be meant."""
    for branch in possible:
        if is_list(branch) or is_mapping(branch) or is_section(branch):
            yield branch


def inside(hint: Any, part: str | int) -> Iterator[Any]:
    """The hint of one key or item, where there is one."""
    arguments = typing.get_args(hint)
    if is_section(hint) and part in hints_of(hint):
        yield hints_of(hint)[str(part)]
    elif is_list(hint) and isinstance(part, int) and arguments:
        fixed = len(arguments) > 1 and Ellipsis not in arguments
        yield arguments[min(part, len(arguments) - 1)] if fixed else arguments[0]
    elif is_mapping(hint) and len(arguments) == 2:
        yield arguments[1]
