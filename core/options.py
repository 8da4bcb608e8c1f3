"""`option()`: a documented, bounded field of a method's configuration dataclass, with the standard library only.

@dataclass(frozen=True, kw_only=True)
class LionConfig:
    lr: float = option(1e-4, "Learning rate.", gt=0)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any, Final

DOC: Final = "luthier.doc"
BOUNDS: Final = "luthier.bounds"
UNIT: Final = "luthier.unit"

COMPARISONS: Final[dict[str, tuple[Callable[[Any, Any], bool], str]]] = {
    "ge": (lambda value, bound: value >= bound, "at least"),
    "gt": (lambda value, bound: value > bound, "greater than"),
    "le": (lambda value, bound: value <= bound, "at most"),
    "lt": (lambda value, bound: value < bound, "less than"),
}


def option(
    default: Any = MISSING,
    doc: str = "",
    *,
    factory: Any = MISSING,
    unit: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A dataclass field with a sentence of documentation and bounds.

    Without `default` and `factory` the option is required. Bounds hold for numbers; `None` and strings pass them,
    so that `int | None` and `Literal["auto"] | float` fields can be bounded too. `unit` is shown by `luthier explain`.
    """
    bounds = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    metadata = {DOC: doc, BOUNDS: bounds, UNIT: unit}
    if factory is not MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def out_of_bounds(field: dataclasses.Field[Any], value: object) -> str | None:
    """What is wrong with `value` for this field, or None when it lies within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    for name, bound in field.metadata.get(BOUNDS, {}).items():
        holds, words = COMPARISONS[name]
        if not holds(value, bound):
            return f"must be {words} {bound}, got {value}"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The configuration of a method that has no options."""
