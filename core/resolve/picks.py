"""One method under consideration: its options read, its packages and its own `supports` asked, its traits known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from luthier.core.catalog import Catalog, Offer
from luthier.core.config.schema import Choice
from luthier.core.config.validate import parse_options
from luthier.core.contracts import AnyMethod, Declaration, Support, Task, TrainingStage
from luthier.core.environment import Environment
from luthier.core.errors import PlanRefused, Problem
from luthier.core.frozen import canonical_json
from luthier.core.plan import SourceSummary
from luthier.core.profile import ArchitectureProfile
from luthier.core.requirements import install_command, missing_packages, why_missing
from luthier.core.resolve.demands import Demand
from luthier.core.serial import to_plain
from luthier.core.traits import Claim, Trait

A = TypeVar("A")


Answers: TypeAlias = dict[Any, tuple["Pick | None", list[Problem]]]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What every question to a method is asked against.

    `demands` are those of the configuration itself. `answers` remembers what was answered already: a question depends on
    nothing but the situation. It may be shared by situations with the same model, machine, catalog and data, as those of a
    matrix are. `task` is that of the named stage, and `profile` that of the model it trains.
    """

    profile: ArchitectureProfile
    environment: Environment
    catalog: Catalog
    data: tuple[SourceSummary, ...] = ()
    task: Task = "causal"
    demands: tuple[Demand, ...] = ()
    answers: Answers = field(default_factory=dict, compare=False, repr=False)

    @property
    def facts(self) -> frozenset[Trait]:
        """Traits that hold before any method is chosen."""
        return self.profile.traits.union(self.environment.traits, *(demand.provides for demand in self.demands))

    @property
    def data_kinds(self) -> tuple[str, ...]:
        return tuple(sorted({source.kind for source in self.data}))


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A method with its options for this run. Two methods of one slot are told apart by their place in the list."""

    slot: str
    name: str
    offer: Offer[AnyMethod]
    config: Any
    why: str = ""
    declaration: Declaration = field(default_factory=Declaration)
    support: Support = field(default_factory=Support.yes)

    @property
    def title(self) -> str:
        return f"{self.slot}: {self.name}"

    @property
    def method(self) -> AnyMethod:
        return self.offer.value


def examine(slot: str, choice: Choice, why: str, situation: Situation) -> tuple[Pick | None, list[Problem]]:
    """The pick, where its name and options can be read at all, and everything that speaks against it on its own."""
    question = (situation.task, slot, choice.use, canonical_json(choice.options))
    if question not in situation.answers:
        situation.answers[question] = _examine(slot, choice, situation)
    pick, problems = situation.answers[question]
    return dataclasses.replace(pick, why=why) if pick is not None else None, list(problems)


def _examine(slot: str, choice: Choice, situation: Situation) -> tuple[Pick | None, list[Problem]]:
    catalog = situation.catalog
    if choice.use not in catalog.slot(slot):
        broken = catalog.broken_for(slot, choice.use)
        if broken:
            return None, [
                Problem(
                    reason=f"{choice.use!r} cannot be used: {broken.error}",
                    where=slot,
                    methods=(f"{slot}: {choice.use}",),
                    fix=f"repair or remove the plugin {broken.provider.plugin} ({broken.provider})",
                    kind="environment",
                )
            ]
        return None, [Problem(reason=catalog.unknown(slot, choice.use), where=slot, methods=(f"{slot}: {choice.use}",))]
    offer = catalog.slot(slot)[choice.use]
    try:
        config = parse_options(offer.value.config, choice.options, where=slot)
    except PlanRefused as refused:
        return None, list(refused.problems)
    return consider(slot, offer, config, situation)


def consider(slot: str, offer: Offer[AnyMethod], config: Any, situation: Situation) -> tuple[Pick | None, list[Problem]]:
    """Ask the method itself: packages, `supports`, `declares`, and the data its stage needs."""
    method = offer.value
    title = f"{slot}: {method.name}"
    problems: list[Problem] = []
    packages = situation.environment.packages
    try:
        missing = missing_packages(method.packages, packages)
        if missing:
            lacking = ", ".join(why_missing(requirement, packages) for requirement in missing)
            reason, fix = f"{title} needs {lacking}", install_command(missing)
            problems.append(Problem(reason=reason, methods=(title,), fix=fix, kind="environment"))
        support = answer("supports", method.supports(situation.profile, situation.environment, config), Support)
        declaration = method.declaration(situation.profile, config)
        check_plain(config)
    except Exception as error:
        return None, [*problems, defect(title, offer, "while it was asked", error)]
    if not support:
        problems.append(
            Problem(
                reason=f"{title} says no" + (f": {support.reason}" if support.reason else ""),
                methods=(title,),
                fix=support.fix,
                kind="environment" if support.kind == "missing" else "config",
            )
        )
    if isinstance(method, TrainingStage):
        problems += _data_problems(method, title, situation) + _task_problems(method, title, situation)
    pick = Pick(slot=slot, name=method.name, offer=offer, config=config, declaration=declaration, support=support)
    return pick, problems


def answer(what: str, value: Any, kind: type[A]) -> A:
    """What a method's callable returned; raises TypeError where it is of the wrong kind."""
    if not isinstance(value, kind):
        raise TypeError(f"`{what}` returned {type(value).__name__}, not {kind.__name__}")
    return value


def check_plain(config: Any) -> None:
    """Raises TypeError where a method's options, written as JSON and read back, would not be the same options.

    Plans are written to files and handed to other processes; better to say so while planning than in the middle of a run.
    """
    written = to_plain(config)
    try:
        again = parse_options(type(config), written, where="")
    except PlanRefused as refused:
        raise TypeError(f"its options cannot be written as JSON: {refused.problems[0]}") from None
    if again != config:
        raise TypeError(f"its options change when they are written as JSON and read back: {config} becomes {again}")


def defect(title: str, offer: Offer[AnyMethod], when: str, error: Exception) -> Problem:
    """A method that failed: no fault of the configuration, but of whoever provides it."""
    reason = f"{title} failed {when} ({type(error).__name__}: {error}); this is a defect of {offer.provider}"
    return Problem(reason=reason, methods=(title,), kind="environment")


def _data_problems(stage: TrainingStage[Any], title: str, situation: Situation) -> list[Problem]:
    wrong = [source for source in situation.data if source.kind != stage.data_kind]
    if not wrong:
        return []
    found = "; ".join(f"{source.path} holds {source.kind} rows (format {source.format})" for source in wrong)
    fitting = [
        name
        for name, offer in sorted(situation.catalog.slot("stage").items())
        if isinstance(offer.value, TrainingStage) and (offer.value.data_kind,) == situation.data_kinds
    ]
    return [
        Problem(
            reason=f"{title} learns from {stage.data_kind} rows, but {found}",
            methods=(title,),
            where="data",
            fix=f"give {stage.data_kind} data" + (f", or take stage: {' or '.join(fitting)}" if fitting else ""),
        )
    ]


def _task_problems(stage: TrainingStage[Any], title: str, situation: Situation) -> list[Problem]:
    """What trains another kind of model than the one that is planned for is no candidate: `auto` takes language models."""
    if stage.task == situation.task:
        return []
    kinds = {"causal": "a language model", "score": "a model with a score head"}
    reason = f"{title} trains {kinds[stage.task]}, not {kinds[situation.task]}"
    return [Problem(reason=reason, methods=(title,), fix=f"name it: stage: {stage.name}")]


def facts_of(picks: Iterable[Pick], situation: Situation) -> frozenset[Trait]:
    """Everything that is true of the run with these picks: what held before, less what they remove, and what they provide.

    What one method provides, another does not take away: two such methods are a conflict, and say so.
    """
    declared = [pick.declaration for pick in picks]
    left = situation.facts.difference(*(one.removes for one in declared))
    return left.union(*(one.provides for one in declared))


def claims_of(picks: Iterable[Pick]) -> dict[Claim, list[Pick]]:
    """Who claims what."""
    claims: dict[Claim, list[Pick]] = {}
    for pick in picks:
        for claim in sorted(pick.declaration.claims):
            claims.setdefault(claim, []).append(pick)
    return claims
