"""What a run that starts from a former one has to have: the same kind of model, and for a stack the same base below it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from luthier.core.catalog import Catalog
from luthier.core.config.schema import AUTO, Choice, RunConfig
from luthier.core.contracts import ModelPatch
from luthier.core.errors import Problem
from luthier.core.frozen import FrozenDict, freeze, thaw
from luthier.core.plan import FormerRun, ModelReference, Step
from luthier.core.resolve.picks import Pick
from luthier.core.resolve.presets import Wish, Wishes
from luthier.core.serial import to_plain
from luthier.core.traits import Trait

STACKS: Final[Trait] = "adapter.stacks"
OPTION: Final = "stack_on"
MERGE: Final = "set model.adapters: merge"


def settled(config: RunConfig, model: ModelReference) -> RunConfig:
    """The configuration with the former run's absolute folder, and with the way that was taken in place of `auto`."""
    if model.former is None:
        return config
    how = AUTO if model.former.how == "whole" else model.former.how
    return dataclasses.replace(config, model=dataclasses.replace(config.model, name=model.former.folder, adapters=how))


def stacked(wishes: Wishes, model: ModelReference, catalog: Catalog) -> Wishes:
    """The wishes with the former run's folder as what the adapter stands on, where the adapter can stand on anything.

    One that cannot is left as it is: the demand (demands.py) says so.
    """
    former = model.former
    if former is None or former.how != "stack":
        return wishes
    offers = catalog.slot("adapter")

    def on_top(options: FrozenDict[str, object]) -> FrozenDict[str, object]:
        given = options.get(OPTION) or ()
        below = (given,) if isinstance(given, str) else tuple(given)  # type: ignore[arg-type]
        folders = below if former.folder in below else (former.folder, *below)
        return FrozenDict({**options, OPTION: folders})

    def changed(wish: Wish) -> Wish:
        offer = offers.get(wish.choice.use) if wish.slot == "adapter" else None
        if offer is None or STACKS not in offer.value.provides:
            return wish
        return dataclasses.replace(wish, choice=Choice(use=wish.choice.use, options=on_top(wish.choice.options)))

    auto = {slot: on_top(options) if slot == "adapter" else options for slot, options in wishes.auto.items()}
    return Wishes(fixed=tuple(changed(wish) for wish in wishes.fixed), auto=FrozenDict(auto))


def former_problems(model: ModelReference, picks: Sequence[Pick]) -> list[Problem]:
    """Why this run cannot start from its former one, beyond what methods and demands say."""
    former = model.former
    if former is None:
        return []
    problems = []
    if former.task != "causal":
        problems.append(
            Problem(
                reason=f"{former.folder} is a reward model (stage: {former.stage}): it scores answers, and no run can start "
                "from it",
                where="model",
                fix=f"start from what it started from, {former.base.name}",
            )
        )
    if former.how == "stack":
        problems += [problem for step in former.patches if (problem := _missing(step, former, picks)) is not None]
    return problems


def _missing(step: Step, former: FormerRun, picks: Sequence[Pick]) -> Problem | None:
    """A patch that made the former run's base what it is belongs on the same base below a stack."""
    written = {"use": step.method, **thaw(step.config)}
    pick = next((pick for pick in picks if (pick.slot, pick.name) == ("patches", step.method)), None)
    if pick is None:
        what, fix = "this run does not name it", f"add it to patches: {written}, or {MERGE}"
    elif freeze(to_plain(pick.config)) != step.config:
        what, fix = "this run gives it other options", f"write it as there: {written}, or {MERGE}"
    elif isinstance(pick.method, ModelPatch) and pick.method.edit_tokenizer is not None:
        what, fix = "the tokenizer of that run has been changed already", MERGE
    else:
        return None
    title = f"patches: {step.method}"
    reason = f"the adapter of {former.folder} sits on a base that {title} changed, and {what}"
    return Problem(reason=reason, where="model.adapters", methods=(title,), fix=fix)
