"""Whether methods combine: requirements met, no conflict, no claim owned twice; and the nearest change that would help.

A method neither meets its own requirement nor conflicts with a trait that it provides itself: "weights.quantized" in
both `provides` and `conflicts` means that no other method may quantise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from luthier.core.catalog import Offer
from luthier.core.config.schema import Choice
from luthier.core.contracts import AnyMethod
from luthier.core.errors import Problem
from luthier.core.resolve.demands import Demand, ways_to_have
from luthier.core.resolve.picks import Pick, Situation, claims_of, examine, facts_of
from luthier.core.traits import CLAIMS, TRAITS, AnyOf, Trait

# Slots of which it is not known which method they hold, each with whether that may be any of its methods (the one that was
# named is wrong) or only one that `auto` takes (nothing has been chosen yet).
Doubts: TypeAlias = Mapping[str, bool]
NO_DOUBTS: Final[Doubts] = {}


@dataclass(frozen=True, kw_only=True)
class Clash:
    """One way in which methods do not combine.

    `picks` begins with the method that minds; what follows are the methods that it minds. Where a demand of the
    configuration minds, they are only those that it minds. `key` tells clashes apart whatever else is in the run.
    """

    key: tuple[Any, ...]
    picks: tuple[Pick, ...]
    demand: Demand | None = None
    need: AnyOf | None = None
    trait: Trait = ""
    claim: str = ""

    @property
    def title(self) -> str:
        """Who minds."""
        return self.demand.title if self.demand else self.picks[0].title


def find(picks: Sequence[Pick], situation: Situation) -> list[Clash]:
    """Every clash between these methods, and between them and the model, the machine and the way it is started."""
    found: dict[tuple[Any, ...], Clash] = {}
    for pick in picks:
        others = [other for other in picks if other is not pick]
        facts = facts_of(others, situation)
        for need in pick.declaration.requires:
            if not need.met_by(facts):
                key: tuple[Any, ...] = ("need", pick.title, need)
                found[key] = Clash(key=key, picks=(pick,), need=need)
        for trait in sorted(pick.declaration.conflicts & facts):
            sources = [other for other in others if trait in other.declaration.provides]
            # Two methods that mind each other for one trait are one clash, said by the first of them.
            key = ("conflict", trait, frozenset(one.title for one in (pick, *sources)))
            if key not in found or not sources:
                found[key] = Clash(key=key, picks=(pick, *sources), trait=trait)
    facts = facts_of(picks, situation)
    for demand in situation.demands:
        for need in demand.requires:
            if not need.met_by(facts):
                key = ("need", demand.title, need)
                found[key] = Clash(key=key, picks=(), demand=demand, need=need)
        for trait in sorted(demand.conflicts & facts):
            sources = [pick for pick in picks if trait in pick.declaration.provides]
            key = ("conflict", trait, demand.title, frozenset(one.title for one in sources))
            found[key] = Clash(key=key, picks=tuple(sources), demand=demand, trait=trait)
    for claim, owners in claims_of(picks).items():
        if len(owners) > 1:
            key = ("claim", claim, frozenset(owner.title for owner in owners))
            found[key] = Clash(key=key, picks=tuple(owners), claim=claim)
    return list(found.values())


def clashes(picks: Sequence[Pick], situation: Situation, doubts: Doubts = NO_DOUBTS) -> list[Problem]:
    """The problems of this combination; a need that a doubtful slot could meet is none of them."""
    return [
        explain(clash, picks, situation) for clash in find(picks, situation) if not could_be_met(clash, doubts, situation)
    ]


def would_clash(candidate: Pick, chosen: Sequence[Pick], situation: Situation, doubts: Doubts = NO_DOUBTS) -> list[Problem]:
    """The problems that a candidate would bring beyond those that the chosen methods have among themselves."""
    picks = [*chosen, candidate]
    before = {clash.key for clash in find(chosen, situation)}
    new = [clash for clash in find(picks, situation) if clash.key not in before]
    return [explain(clash, picks, situation) for clash in new if not could_be_met(clash, doubts, situation)]


def could_be_met(clash: Clash, doubts: Doubts, situation: Situation) -> bool:
    """Whether a method of a doubtful slot, with its default options, could be what this one needs."""
    if clash.need is None:
        return False
    return any(
        (any_method or offer.value.priority > 0) and clash.need.traits & provided_by(slot, name, situation)
        for slot, any_method in doubts.items()
        for name, offer in situation.catalog.slot(slot).items()
    )


def provided_by(slot: str, name: str, situation: Situation) -> frozenset[Trait]:
    """What a method provides with its default options; where these cannot be asked, what it provides in any case."""
    pick, _ = examine(slot, Choice(use=name), "", situation)
    offer: Offer[AnyMethod] = situation.catalog.slot(slot)[name]
    return pick.declaration.provides if pick else frozenset(offer.value.provides)


def explain(clash: Clash, picks: Sequence[Pick], situation: Situation) -> Problem:
    """A clash in words, with the nearest change that would resolve it."""
    if clash.demand is not None:
        return demanded(clash, clash.demand, picks, situation)
    if clash.need is not None:
        return unmet(clash.picks[0], clash.need, picks, situation)
    if clash.trait:
        return conflict(clash.picks[0], clash.trait, clash.picks[1:], picks, situation)
    titles = tuple(owner.title for owner in clash.picks)
    changes = [change for owner in clash.picks for change in ways_without(owner, picks, situation)]
    both = "both" if len(titles) == 2 else "all"
    return Problem(
        reason=f"{' and '.join(titles)} {both} claim {clash.claim} ({CLAIMS.get(clash.claim, 'declared by a plugin')})",
        methods=titles,
        fix=", or ".join(changes) or f"keep one of them: {' or '.join(owner.name for owner in clash.picks)}",
    )


def unmet(pick: Pick, need: AnyOf, picks: Sequence[Pick], situation: Situation) -> Problem:
    """A requirement that nothing else in the run fulfils."""
    meanings = "; ".join(TRAITS[trait] for trait in sorted(need.traits) if trait in TRAITS)
    reasons = pick.declaration.reasons
    why = "; ".join(reasons[trait] for trait in sorted(need.traits) if trait in reasons)
    return Problem(
        reason=f"{pick.title} needs {need}{f' ({meanings})' if meanings else ''}, which nothing else in this run provides"
        + (f": {why}" if why else ""),
        methods=(pick.title,),
        fix=providers_text(pick, need.traits, picks, situation),
    )


def demanded(clash: Clash, demand: Demand, picks: Sequence[Pick], situation: Situation) -> Problem:
    """What the configuration itself asks for and the methods or the model do not give; each method's reason with it."""
    traits = clash.need.traits if clash.need else frozenset({clash.trait})
    why = "".join(
        f"; {pick.title} does not: {pick.declaration.reasons[trait]}"
        for pick in picks
        for trait in sorted(traits & set(pick.declaration.reasons))
    )
    meanings = "; ".join(TRAITS[trait] for trait in sorted(traits) if trait in TRAITS)
    if clash.need is not None:
        what = f"needs {clash.need} ({meanings}), which nothing in this run provides{why}"
        ways = providers_text(None, traits, picks, situation)
    else:
        origins = [pick.title for pick in clash.picks] + origins_of(clash.trait, situation)
        what = f"cannot be combined with {clash.trait} ({meanings}), which comes from {' and '.join(origins)}"
        ways = ", or ".join(ways_to_remove(clash.trait, picks, situation))
    return Problem(
        reason=f"{demand.title} {what}",
        methods=tuple(pick.title for pick in clash.picks),
        where=demand.title.partition(":")[0],
        fix=", or ".join(filter(None, [ways, demand.without])),
    )


def conflict(pick: Pick, trait: Trait, sources: Sequence[Pick], picks: Sequence[Pick], situation: Situation) -> Problem:
    """A trait that a method cannot bear, and where it comes from."""
    origins = [other.title for other in sources] + origins_of(trait, situation)
    meaning = f" ({TRAITS[trait]})" if trait in TRAITS else ""
    why = f": {pick.declaration.reasons[trait]}" if trait in pick.declaration.reasons else ""
    changes = ways_without(pick, picks, situation)
    if sources and trait not in situation.facts:
        ways = [ways_without(source, picks, situation) for source in sources]
        if all(ways):
            changes.append(" and ".join(way[0] for way in ways))
    elif not sources:
        changes += ways_to_remove(trait, picks, situation)
    return Problem(
        reason=f"{pick.title} cannot be combined with {trait}{meaning}, which comes from {' and '.join(origins)}{why}",
        methods=(pick.title, *(other.title for other in sources)),
        fix=", or ".join(changes),
    )


def origins_of(trait: Trait, situation: Situation) -> list[str]:
    """Where a trait comes from that holds without any method."""
    origins = []
    if trait in situation.profile.traits:
        origins.append(f"the model ({situation.profile.model_type})")
    origins += [demand.title for demand in situation.demands if trait in demand.provides]
    if trait in situation.environment.traits:
        origins.append("this machine" if trait.startswith("device.") else "the way this run is started")
    return origins


def ways_without(pick: Pick, picks: Sequence[Pick], situation: Situation) -> list[str]:
    """What to write in place of this method: nothing, for a patch; for any other, those of its slot that do fit."""
    if pick.slot == "patches":
        return [f"leave out {pick.title}"]
    fitting = [
        name for name in _by_priority(pick.slot, situation) if name != pick.name and _fits(name, pick, picks, situation)
    ]
    return [f"take {pick.slot}: {' or '.join(fitting)}"] if fitting else []


def ways_to_remove(trait: Trait, picks: Sequence[Pick], situation: Situation) -> list[str]:
    """What would make a trait untrue of the run that no method provides: patches that bring no new clash, or no demand."""
    present = {pick.name for pick in picks if pick.slot == "patches"}
    before = {clash.key for clash in find(picks, situation)}
    ways = [demand.without for demand in situation.demands if trait in demand.provides]
    for name in _by_priority("patches", situation):
        patch, problems = examine("patches", Choice(use=name), "", situation)
        if name in present or patch is None or problems or trait not in patch.declaration.removes:
            continue
        if {clash.key for clash in find([*picks, patch], situation)} <= before:
            ways.append(f"add patches: {name}")
    return ways


def _by_priority(slot: str, situation: Situation) -> list[str]:
    offers = situation.catalog.slot(slot)
    return sorted(offers, key=lambda name: (-offers[name].value.priority, name))


def _fits(name: str, instead: Pick, picks: Sequence[Pick], situation: Situation) -> bool:
    """Whether this method, with default options, could stand where `instead` stands without a new clash."""
    candidate, problems = examine(instead.slot, Choice(use=name), "", situation)
    if candidate is None or problems:
        return False
    after = {clash.key for clash in find([*(pick for pick in picks if pick is not instead), candidate], situation)}
    before = {clash.key for clash in find(picks, situation)}
    return after < before


def providers_text(pick: Pick | None, traits: Iterable[Trait], picks: Sequence[Pick], situation: Situation) -> str:
    """Which methods would provide one of these traits, by slot; why not, where none of them can be used here.

    `pick` is the method that wants it, which stays where it is; None where a demand does.
    """
    wanted = frozenset(traits)
    present = {other.title: other for other in picks}
    usable: dict[str, list[str]] = {}
    hindered: list[str] = []
    changed: list[str] = []
    for slot, offers in situation.catalog.methods.items():
        if pick is not None and slot == pick.slot != "patches":
            continue
        for name in _by_priority(slot, situation) if offers else ():
            title = f"{slot}: {name}"
            if (pick is not None and title == pick.title) or not wanted & provided_by(slot, name, situation):
                continue
            _, problems = examine(slot, Choice(use=name), "", situation)
            if title in present:
                changed.append(f"{title} provides it with its default options")
            elif problems:
                hindered.append(f"{title} would provide it, but {'; '.join(problem.reason for problem in problems)}")
            else:
                usable.setdefault(slot, []).append(name)
    ways = [f"{'add' if slot == 'patches' else 'take'} {slot}: {' or '.join(names)}" for slot, names in usable.items()]
    ways += ways_to_have(wanted)
    return ", or ".join(changed + ways) or "; ".join(hindered) or "no installed method provides it"
