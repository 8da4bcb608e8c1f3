"""What `auto` takes: the first candidate by priority that fits what is fixed, with a reason for every other one."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.config.schema import Choice
from luthier.core.errors import Problem
from luthier.core.frozen import FrozenDict
from luthier.core.plan import Rejected
from luthier.core.resolve.compat import would_clash
from luthier.core.resolve.picks import Pick, Situation, examine

# Later slots may need what earlier ones provide (a patch for low-rank adapters needs the adapter), never the other way.
AUTO_ORDER = ("stage", "adapter", "optimizer", "attention", "patches")


def fill(
    slot: str, options: FrozenDict[str, object], chosen: Sequence[Pick], situation: Situation
) -> tuple[list[Pick], list[Rejected], list[Problem]]:
    """Choose for one slot. `patches` takes every candidate that fits; any other slot exactly one.

    A method of priority 0 or less is no candidate: it is taken only when named.
    """
    many = slot == "patches"
    offers = situation.catalog.slot(slot)
    named = {pick.name for pick in chosen if pick.slot == slot}
    candidates = sorted(
        (name for name, offer in offers.items() if offer.value.priority > 0 and name not in named),
        key=lambda name: (-offers[name].value.priority, name),
    )
    picked: list[Pick] = []
    rejected: list[Rejected] = []
    for name in candidates:
        if picked and not many:
            winner = picked[0]
            reason = f"{winner.name} comes first (priority {winner.method.priority} against {offers[name].value.priority})"
            rejected.append(Rejected(slot=slot, method=name, reason=reason))
            continue
        pick, problems = examine(slot, Choice(use=name, options=options), "", situation)
        if pick and not problems:
            problems = would_clash(pick, [*chosen, *picked], situation)
        if pick is None or problems:
            rejected.append(Rejected(slot=slot, method=name, reason="; ".join(problem.reason for problem in problems)))
            continue
        picked.append(_with_reason(pick, rejected, many))
    if picked or many:
        return picked, rejected, []
    return [], rejected, [_nothing_fits(slot, candidates, rejected)]


def _with_reason(pick: Pick, rejected: Sequence[Rejected], many: bool) -> Pick:
    passed = [entry.method for entry in rejected]
    if many:
        why = "auto: fits this model, machine and combination"
    elif passed:
        why = f"auto: the first candidate that fits, after {', '.join(passed)}"
    else:
        why = f"auto: the first candidate by priority ({pick.method.priority})"
    if pick.support.reason and pick.support.kind == "yes":
        why += f"; {pick.support.reason}"
    return Pick(
        slot=pick.slot, name=pick.name, offer=pick.offer, config=pick.config, why=why,
        declaration=pick.declaration, support=pick.support,
    )  # fmt: skip


def _nothing_fits(slot: str, candidates: Sequence[str], rejected: Sequence[Rejected]) -> Problem:
    if not candidates:
        return Problem(reason=f"no {slot} method is installed that `auto` could take", where=slot)
    reasons = "; ".join(f"{entry.method}: {entry.reason}" for entry in rejected)
    return Problem(
        reason=f"no {slot} method fits: {reasons}",
        where=slot,
        methods=tuple(f"{slot}: {name}" for name in candidates),
        fix=f"name one under `{slot}` and change what it lacks",
    )
