"""What the configuration asks of the methods by keys that stand outside their slots.

A demand is a party to the combination like a method is: it makes facts true of the run, and it needs and cannot bear
traits. It names no method; which ones meet it is what they declare.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from luthier.core.config.schema import RunConfig
from luthier.core.plan import ModelReference
from luthier.core.traits import AnyOf, Trait, any_of


@dataclass(frozen=True, kw_only=True)
class Demand:
    """One key's demand.

    title      the key and its value, as the configuration has them
    provides   facts that are true of the run by it
    requires   each: at least one of these traits must be true of the run
    conflicts  traits that must not be true of the run
    without    what to write where it cannot be met, or must not be
    by         what to write to have what it provides
    """

    title: str
    provides: frozenset[Trait] = frozenset()
    requires: tuple[AnyOf, ...] = ()
    conflicts: frozenset[Trait] = frozenset()
    without: str = ""
    by: str = ""


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

STACKING: Final = Demand(
    title="model.adapters: stack",
    requires=(any_of("adapter.stacks"),),
    without="set model.adapters: merge",
)
HELD_OUT: Final = Demand(
    title="data.eval",
    provides=frozenset({"rows.held_out"}),
    without="leave out data.eval",
    by="set data.eval, for example to 0.05",
)
EVALUATED: Final = Demand(
    title="train.eval_every",
    provides=frozenset({"rows.evaluated"}),
    without="leave out train.eval_every",
    by="set train.eval_every, for example to 50",
)
ALL_LEARNED: Final = Demand(
    title="data.train_on: all",
    provides=frozenset({"rows.all_learned"}),
    without="leave out data.train_on",
)


def demands_of(config: RunConfig, model: ModelReference) -> tuple[Demand, ...]:
    """Every demand of a configuration and of the former run that it starts from."""
    stacking = model.former is not None and model.former.how == "stack"
    data = config.data
    wanted = (
        (PACKING, data.packing),
        (STREAMING, data.streaming),
        (STACKING, stacking),
        (HELD_OUT, bool(data.eval)),
        (EVALUATED, config.train.eval_every is not None),
        (ALL_LEARNED, data.train_on == "all"),
    )
    return tuple(demand for demand, wish in wanted if wish)


def ways_to_have(traits: Collection[Trait]) -> list[str]:
    """What to write in the configuration to make one of these traits true, where a key outside the slots does."""
    return [demand.by for demand in (HELD_OUT, EVALUATED) if demand.provides & frozenset(traits)]
