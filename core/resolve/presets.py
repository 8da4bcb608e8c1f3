"""Presets expanded into the slots they stand for, before anything else is looked at.

What the user wrote goes before what a preset says: options beside the same method, or beside `auto`, are laid over those
of the preset. Two different methods for one slot are a contradiction, and a problem.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from luthier.core.catalog import Catalog, Offer
from luthier.core.config.load import parse_slot
from luthier.core.config.schema import SLOT_KEYS, Choice, RunConfig, choices
from luthier.core.errors import PlanRefused, Problem
from luthier.core.extensions import Preset
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
    presets: list[tuple[str, Choice]] = []
    for slot in SLOT_KEYS:
        for choice in choices(getattr(config, slot)):
            if choice.is_auto:
                auto[slot] = _over(auto.get(slot, {}), choice.options)
            elif _is_preset(slot, choice.use, catalog):
                presets.append((slot, choice))
            else:
                fixed.append(Wish(slot=slot, choice=choice))
    problems: list[Problem] = []
    for slot, choice in presets:
        problems += _Expansion(slot, choice, catalog, fixed, auto).run()
    return Wishes(fixed=tuple(fixed), auto=FrozenDict(auto)), problems


def _is_preset(slot: str, name: str, catalog: Catalog) -> bool:
    return name in catalog.presets.get(slot, {}) and name not in catalog.slot(slot)


def _over(under: Mapping[str, object], upper: Mapping[str, object]) -> FrozenDict[str, object]:
    return FrozenDict({**under, **upper})


class _Expansion:
    """One preset laid under the wishes."""

    def __init__(
        self,
        slot: str,
        choice: Choice,
        catalog: Catalog,
        fixed: list[Wish],
        auto: dict[str, FrozenDict[str, object]],
    ) -> None:
        self.slot, self.choice, self.catalog, self.fixed, self.auto = slot, choice, catalog, fixed, auto
        self.offer: Offer[Preset] = catalog.presets[slot][choice.use]
        self.why = f"from the preset {choice.use}"
        self.title = f"{slot}: {choice.use}"
        self.problems: list[Problem] = []

    def run(self) -> list[Problem]:
        parsed: dict[str, list[Choice]] = {}
        for slot, value in self.offer.value.config.items():
            if slot not in SLOT_KEYS:
                self._defect(f"sets {slot}, which is no slot")
                continue
            try:
                parsed[slot] = list(choices(parse_slot(slot, value)))
            except PlanRefused as refused:
                for problem in refused.problems:
                    self._defect(f"is wrong: {problem.where}: {problem.reason}")
        # A preset that says nothing about its own slot leaves it to the plan, with the options written beside its name.
        own = parsed.setdefault(self.slot, [Choice()] if self.slot != "patches" else [])
        if self.choice.options and len(own) == 1:
            own[0] = Choice(use=own[0].use, options=_over(own[0].options, self.choice.options))
        elif self.choice.options:
            fix = "write them beside the patch that they are for"
            reason = f"{self.title} stands for {len(own)} patches, so options beside it are for none of them"
            self.problems.append(Problem(reason=reason, methods=(self.title,), fix=fix))
        for slot, wanted in parsed.items():
            for one in wanted:
                self._add(slot, one)
        return self.problems

    def _add(self, slot: str, one: Choice) -> None:
        if _is_preset(slot, one.use, self.catalog):
            self._defect(f"names {slot}: {one.use}, a preset; a preset names methods")
            return
        present = [index for index, wish in enumerate(self.fixed) if wish.slot == slot]
        if one.is_auto:
            if slot not in self.auto and (slot == "patches" or not present):
                self.auto[slot] = FrozenDict()
            if slot in self.auto:
                self.auto[slot] = _over(one.options, self.auto[slot])
            elif one.options:
                self._lay_under(present[0], one.options)
            return
        same = [index for index in present if self.fixed[index].choice.use == one.use]
        if same:
            self._lay_under(same[0], one.options)
        elif slot == "patches" or not present:
            options = one.options if slot == "patches" else _over(one.options, self.auto.pop(slot, {}))
            self.fixed.append(Wish(slot=slot, choice=Choice(use=one.use, options=options), why=self.why))
        else:
            self._contradiction(slot, one, self.fixed[present[0]])

    def _lay_under(self, index: int, options: Mapping[str, object]) -> None:
        wish = self.fixed[index]
        if set(options) - set(wish.choice.options):
            choice = Choice(use=wish.choice.use, options=_over(options, wish.choice.options))
            self.fixed[index] = dataclasses.replace(wish, choice=choice, why=f"{wish.why}, with options {self.why}")

    def _contradiction(self, slot: str, one: Choice, wish: Wish) -> None:
        said = "the configuration says" if wish.why.startswith(NAMED) else f"there is, {wish.why},"
        self.problems.append(
            Problem(
                reason=f"{self.title} is a preset that needs {slot}: {one.use}, but {said} {slot}: {wish.choice.use}",
                methods=(self.title, f"{slot}: {wish.choice.use}"),
                fix=f"leave `{slot}` out, or write the combination without the preset"
                if wish.why.startswith(NAMED)
                else "keep one of the two presets",
            )
        )

    def _defect(self, what: str) -> None:
        reason = f"the preset {self.choice.use} {what}; this is a defect of {self.offer.provider}"
        self.problems.append(Problem(reason=reason, methods=(self.title,), where=self.slot, kind="environment"))
