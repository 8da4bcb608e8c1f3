"""What the configuration asks of the methods by keys that stand outside their slots.

A demand is a party to the combination like a method is: it makes facts true of the run, and it needs and cannot bear
traits. It names no method; which ones meet it is what they declare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from luthier.core.config.schema import RunConfig
from luthier.core.traits import AnyOf, Trait, any_of


@dataclass(frozen=True, kw_only=True)
class Demand:
    """One key's demand.

    title      the key and its value, as the configuration has them
    provides   facts that are true of the run by it
    requires   each: at least one of these traits must be true of the run
    conflicts  traits that must not be true of the run
    without    what to write where it cannot be met
    """

    title: str
    provides: frozenset[Trait] = frozenset()
    requires: tuple[AnyOf, ...] = ()
    conflicts: frozenset[Trait] = frozenset()
    without: str = ""


PACKING: Final = Demand(
    title="data.packing: true",
    provides=frozenset({"batches.packed"}),
    requires=(any_of("stage.packs"), any_of("attention.packed")),
    conflicts=frozenset({"model.recurrent"}),
    without="leave out data.packing",
)
STREAMING: Final = Demand(
    title="data.streaming: true",
    requires=(any_of("stage.streams"),),
    without="leave out data.streaming",
)


def demands_of(config: RunConfig) -> tuple[Demand, ...]:
    """Every demand of a configuration."""
    wanted = ((PACKING, config.data.packing), (STREAMING, config.data.streaming))
    return tuple(demand for demand, wish in wanted if wish)
