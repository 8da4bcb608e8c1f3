"""Presets expanded into the slots they stand for, before anything else is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.catalog import Catalog
from luthier.core.config.load import parse_slot
from luthier.core.config.schema import AUTO, SLOT_KEYS, Choice, RunConfig, choices
from luthier.core.errors import PlanRefused, Problem
from luthier.core.frozen import FrozenDict

NAMED = "named in the configuration"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One method that the run must have, and who asked for it."""

    slot: str
    choice: Choice
    why: str = NAMED


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is fixed, which slots are left to the plan, and what options were written beside `auto`."""

    fixed: tuple[Wish, ...]
    auto: FrozenDict[str, FrozenDict[str, object]]


def expand(config: RunConfig, catalog: Catalog) -> tuple[Wishes, list[Problem]]:
    """Read the slots of a configuration, with every preset replaced by what it stands for."""
    fixed: list[Wish] = []
    auto: dict[str, FrozenDict[str, object]] = {}
    problems: list[Problem] = []
    presets = []
    for slot in SLOT_KEYS:
        for choice in choices(getattr(config, slot)):
            if choice.is_auto:
                auto[slot] = choice.options
            elif choice.use in catalog.presets.get(slot, {}) and choice.use not in catalog.slot(slot):
                presets.append((slot, choice))
            else:
                fixed.append(Wish(slot=slot, choice=choice))
    for slot, choice in presets:
        problems += _expand_one(slot, choice, catalog, fixed, auto)
    return Wishes(fixed=tuple(fixed), auto=FrozenDict(auto)), problems


def _expand_one(
    own_slot: str, choice: Choice, catalog: Catalog, fixed: list[Wish], auto: dict[str, FrozenDict[str, object]]
) -> list[Problem]:
    preset = catalog.presets[own_slot][choice.use].value
    why = f"from the preset {preset.name}"
    problems: list[Problem] = []
    for slot, value in preset.config.items():
        if slot not in SLOT_KEYS:
            problems.append(Problem(reason=f"the preset {preset.name} sets {slot}, which is not a slot", where=own_slot))
            continue
        try:
            wanted = [one for one in choices(parse_slot(slot, value)) if one.use != AUTO]
        except PlanRefused as refused:
            problems += refused.problems
            continue
        for one in wanted:
            if slot == own_slot:
                one = Choice(use=one.use, options=FrozenDict({**one.options, **choice.options}))
            present = [wish for wish in fixed if wish.slot == slot]
            same = any(wish.choice.use == one.use for wish in present)
            if same or slot == "patches" or not present:
                if not same:
                    fixed.append(Wish(slot=slot, choice=one, why=why))
                if slot != "patches":
                    auto.pop(slot, None)
                continue
            problems.append(
                Problem(
                    reason=f"{own_slot}: {preset.name} is a preset that needs {slot}: {one.use}, "
                    f"but the configuration says {slot}: {present[0].choice.use}",
                    methods=(f"{own_slot}: {preset.name}", f"{slot}: {present[0].choice.use}"),
                    fix=f"leave `{slot}` out, or write the combination without the preset",
                )
            )
    return problems
