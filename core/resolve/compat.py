"""Whether methods combine: requirements met, no conflict, no claim owned twice; and the nearest change that would help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from luthier.core.catalog import Catalog
from luthier.core.errors import Problem
from luthier.core.resolve.picks import Pick, Situation, claims_of, facts_of
from luthier.core.traits import CLAIMS, TRAITS, AnyOf, Trait


def clashes(picks: Sequence[Pick], situation: Situation) -> list[Problem]:
    """Every problem between these methods, and between them and the model, the machine and the way it is started."""
    facts = facts_of(picks, situation)
    problems: list[Problem] = []
    for pick in picks:
        problems += [unmet(pick, need, situation) for need in pick.declaration.requires if not need.met_by(facts)]
        for trait in sorted(pick.declaration.conflicts & facts):
            problems.append(conflict(pick, trait, picks, situation))
    for claim, owners in claims_of(picks).items():
        if len(owners) > 1:
            titles = tuple(owner.title for owner in owners)
            problems.append(
                Problem(
                    reason=f"{' and '.join(titles)} both claim {claim} ({CLAIMS.get(claim, 'declared by a plugin')})",
                    methods=titles,
                    fix=f"keep one of them: {' or '.join(owner.name for owner in owners)}",
                )
            )
    return problems


def would_clash(candidate: Pick, chosen: Sequence[Pick], situation: Situation) -> list[Problem]:
    """The problems that a candidate would bring beyond those that the chosen methods have among themselves."""
    before = set(clashes(chosen, situation))
    return [problem for problem in clashes([*chosen, candidate], situation) if problem not in before]


def unmet(pick: Pick, need: AnyOf, situation: Situation) -> Problem:
    """A requirement that nothing in the run fulfils."""
    meanings = "; ".join(TRAITS[trait] for trait in sorted(need.traits) if trait in TRAITS)
    return Problem(
        reason=f"{pick.title} needs {need}{f' ({meanings})' if meanings else ''}, which nothing in this run provides",
        methods=(pick.title,),
        fix=providers_text(need.traits, situation.catalog),
    )


def conflict(pick: Pick, trait: Trait, picks: Sequence[Pick], situation: Situation) -> Problem:
    """A trait that a method cannot bear, and where it comes from."""
    sources = [other for other in picks if trait in other.declaration.provides and other is not pick]
    whence = " and ".join(other.title for other in sources) or source_of(trait, situation)
    meaning = f" ({TRAITS[trait]})" if trait in TRAITS else ""
    alternatives = [
        name
        for name, offer in sorted(situation.catalog.slot(pick.slot).items())
        if name != pick.name and trait not in offer.value.conflicts and offer.value.priority > 0
    ]
    changes = [f"leave out {other.title}" for other in sources]
    if alternatives and pick.slot != "patches":
        changes.insert(0, f"take {pick.slot}: {' or '.join(alternatives)}")
    elif pick.slot == "patches":
        changes.insert(0, f"leave out {pick.title}")
    return Problem(
        reason=f"{pick.title} cannot be combined with {trait}{meaning}, which comes from {whence}",
        methods=(pick.title, *(other.title for other in sources)),
        fix=", or ".join(changes),
    )


def source_of(trait: Trait, situation: Situation) -> str:
    """Where a trait comes from that no method provides."""
    if trait in situation.profile.traits:
        return f"the model ({situation.profile.model_type})"
    return "this machine" if trait in situation.environment.traits else "the method itself"


def providers_text(traits: Iterable[Trait], catalog: Catalog) -> str:
    """Which methods would provide one of these traits, by slot."""
    by_slot: dict[str, list[str]] = {}
    for trait in sorted(traits):
        for slot, name in catalog.providers_of(trait):
            if name not in by_slot.setdefault(slot, []):
                by_slot[slot].append(name)
    if not by_slot:
        return "no installed method provides it"
    return "; or ".join(f"take {slot}: {' or '.join(names)}" for slot, names in by_slot.items())
