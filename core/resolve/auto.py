"""What `auto` takes: the first candidate by priority that fits what is fixed, with a reason for every other one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from luthier.core.config.schema import Choice
from luthier.core.contracts import AnyMethod
from luthier.core.errors import Problem
from luthier.core.frozen import FrozenDict
from luthier.core.plan import Rejected
from luthier.core.resolve.compat import NO_DOUBTS, Doubts, could_be_met, find, would_clash
from luthier.core.resolve.picks import Pick, Situation, examine

# Patches come last, because which of them fit depends on everything else. What an earlier slot needs, a later one may
# still provide; what a chosen method needs and only this slot can provide goes before priority.
AUTO_ORDER = ("stage", "adapter", "optimizer", "attention", "patches")


def fill(
    slot: str,
    options: FrozenDict[str, object],
    chosen: Sequence[Pick],
    situation: Situation,
    doubts: Doubts = NO_DOUBTS,
) -> tuple[list[Pick], list[Rejected], list[Problem]]:
    """Choose for one slot. `patches` takes every candidate that fits; any other slot exactly one.

    A method of priority 0 or less is no candidate: it is taken only when named. `doubts` are the other
    slots that are still open, or whose method is wrong.
    """
    many = slot == "patches"
    offers = situation.catalog.slot(slot)
    named = {pick.name for pick in chosen if pick.slot == slot}
    candidates = sorted(
        (name for name, offer in offers.items() if offer.value.priority > 0 and name not in named),
        key=lambda name: (-offers[name].value.priority, name),
    )
    able: dict[str, Pick] = {}
    against: dict[str, list[Problem]] = {}
    for name in candidates:
        pick, problems = examine(slot, Choice(use=name, options=options), "", situation)
        if pick is None or problems:
            against[name] = problems
        else:
            able[name] = pick
    picked = _every(able, chosen, situation, against, doubts) if many else _best(able, chosen, situation, against, doubts)
    rejected = _broken(slot, situation)
    rejected += [Rejected(slot=slot, method=name, reason=_text(against[name])) for name in candidates if name in against]
    if many:
        finished = [dataclasses.replace(pick, why="auto: fits this model, machine and combination") for pick in picked]
        left_over = bool(options) and not picked
        return finished, rejected, [_nothing_fits(slot, candidates, against, situation)] if left_over else []
    if not picked:
        return [], rejected, [_nothing_fits(slot, candidates, against, situation)]
    winner = picked[0]
    passed = candidates[: candidates.index(winner.name)]
    others = [name for name in candidates if name != winner.name and name not in against]
    rejected += [
        Rejected(slot=slot, method=name, reason=_comes_first(winner, offers[name].value, chosen, situation, doubts))
        for name in others
    ]
    rejected.sort(key=lambda entry: candidates.index(entry.method) if entry.method in candidates else -1)
    return [dataclasses.replace(winner, why=_why(winner, passed, chosen, situation, doubts))], rejected, []


def _every(
    able: dict[str, Pick],
    chosen: Sequence[Pick],
    situation: Situation,
    against: dict[str, list[Problem]],
    doubts: Doubts,
) -> list[Pick]:
    """All that fit; one that needs what another provides is asked again after that one was taken."""
    picked: list[Pick] = []
    waiting = list(able.values())
    while waiting:
        before = len(picked)
        for pick in list(waiting):
            problems = would_clash(pick, [*chosen, *picked], situation, doubts)
            if problems:
                against[pick.name] = problems
                continue
            against.pop(pick.name, None)
            picked.append(pick)
            waiting.remove(pick)
        if len(picked) == before:
            break
    return picked


def _best(
    able: dict[str, Pick],
    chosen: Sequence[Pick],
    situation: Situation,
    against: dict[str, list[Problem]],
    doubts: Doubts,
) -> list[Pick]:
    """The candidate that meets most of the needs that only this slot can meet; among equals, the first."""
    fitting = []
    for pick in able.values():
        problems = would_clash(pick, chosen, situation, doubts)
        if problems:
            against[pick.name] = problems
        else:
            fitting.append(pick)
    if not fitting:
        return []
    return [max(fitting, key=lambda pick: len(_needs_met(pick, chosen, situation, doubts)))]


def _needs_met(pick: Pick, chosen: Sequence[Pick], situation: Situation, doubts: Doubts) -> list[str]:
    """Which needs of the chosen methods this one meets that nothing else could."""
    met = []
    for clash in find(chosen, situation):
        if clash.need is None or could_be_met(clash, doubts, situation):
            continue
        if clash.need.traits & pick.declaration.provides:
            met.append(f"{clash.title} needs {clash.need}")
    return met


def _why(winner: Pick, passed: Sequence[str], chosen: Sequence[Pick], situation: Situation, doubts: Doubts) -> str:
    met = _needs_met(winner, chosen, situation, doubts)
    if met:
        why = f"auto: {' and '.join(met)}, which this provides"
    elif passed:
        why = f"auto: the first candidate that fits, after {', '.join(passed)}"
    else:
        why = f"auto: the first candidate by priority ({winner.method.priority})"
    return f"{why}; {winner.support.reason}" if winner.support.reason and winner.support.kind == "yes" else why


def _comes_first(winner: Pick, other: AnyMethod, chosen: Sequence[Pick], situation: Situation, doubts: Doubts) -> str:
    first, second = winner.method.priority, other.priority
    if second > first or (second == first and other.name < winner.name):
        return f"{winner.name} comes first: {' and '.join(_needs_met(winner, chosen, situation, doubts))}"
    if second == first:
        return f"{winner.name} comes first (by name, at the same priority {first})"
    return f"{winner.name} comes first (priority {first} against {second})"


def _broken(slot: str, situation: Situation) -> list[Rejected]:
    """What `auto` might have taken, had its plugin not been broken: passing it over in silence would hide a fallback."""
    lost = []
    for broken in situation.catalog.broken:
        for title in broken.names:
            area, _, name = title.partition(": ")
            if area == slot and name not in situation.catalog.slot(slot):
                lost.append(Rejected(slot=slot, method=name, reason=f"its plugin is broken: {broken.error}"))
    return lost


def _text(problems: Sequence[Problem]) -> str:
    """Reasons in one line; an option's problem keeps the place of the option."""
    words = [problem.reason if problem.methods else str(dataclasses.replace(problem, fix="")) for problem in problems]
    return "; ".join(words)


def _nothing_fits(
    slot: str,
    candidates: Sequence[str],
    against: Mapping[str, list[Problem]],
    situation: Situation,
) -> Problem:
    installed = sorted(situation.catalog.slot(slot))
    if not candidates:
        broken = sorted({str(one.provider.plugin) for one in situation.catalog.broken})
        named = f"name one: {' or '.join(installed)}" if installed else f"install a plugin with a method for `{slot}`"
        return Problem(
            reason=f"no {slot} method is installed that `auto` could take",
            where=slot,
            fix=f"repair the broken plugin {', '.join(broken)}" if broken and not installed else named,
            kind="config" if installed else "environment",
        )
    if len(candidates) == 1 and len(against[candidates[0]]) == 1 and not against[candidates[0]][0].methods:
        # An option that the only candidate does not take is a mistake in the option, and best said as one.
        return against[candidates[0]][0]
    fixes = [problem.fix for name in candidates for problem in against[name] if problem.fix]
    everything = [problem for name in candidates for problem in against[name]]
    return Problem(
        reason=f"no {slot} method fits: " + "; ".join(f"{name}: {_text(against[name])}" for name in candidates),
        where=slot,
        methods=tuple(f"{slot}: {name}" for name in candidates),
        fix=", or ".join(dict.fromkeys(fixes)) or f"name one under `{slot}` and change what it lacks",
        kind="environment" if all(problem.kind == "environment" for problem in everything) else "config",
    )
