"""Immutable, hashable, JSON-shaped values: what plans and profiles are made of."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(Mapping[K, V]):
    """A mapping that never changes, hashes by content, and keeps its insertion order."""

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[K, V] | None = None) -> None:
        self._items: dict[K, V] = dict(items or {})
        self._hash: int | None = None

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._items.items()))
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the hash: that of a text is another number in each process.
        return FrozenDict, (self._items,)

    def __repr__(self) -> str:
        return f"FrozenDict({self._items!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """For option dataclasses: validated as the dict of the same types, then frozen all the way down."""
        from pydantic_core import core_schema

        of = typing.get_args(source) or (str, Any)
        return core_schema.no_info_after_validator_function(freeze, handler.generate_schema(types.GenericAlias(dict, of)))


def freeze(value: Any) -> Any:
    """JSON-shaped data with every mapping a FrozenDict and every list a tuple."""
    if isinstance(value, Mapping):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    if isinstance(value, set | frozenset):
        return tuple(sorted(freeze(item) for item in value))
    return value


def thaw(value: Any) -> Any:
    """The inverse of `freeze`, in plain dicts and lists that `json` and `yaml` can write."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(thaw(item) for item in value)
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces. Hashes are taken over this."""
    return json.dumps(thaw(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
