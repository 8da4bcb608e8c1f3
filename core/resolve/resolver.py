"""`resolve()`: the one place where a run is decided. It has no side effects and knows no method by name.

1. presets become the slots they stand for          presets.py
2. every named method is examined on its own        picks.py
3. `auto` slots take the first candidate that fits  auto.py
4. all of them together: needs, conflicts, claims   compat.py; and the checkpoint's own needs, checkpoint.py
5. precision, load options, memory, execution order

Problems are collected over all of it and raised once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.catalog import Catalog
from luthier.core.config.schema import DataConfig, RunConfig
from luthier.core.contracts import AttentionKernel, MemoryTerms, ModelPatch, OptimizerMethod, Reference, Task, TrainingStage
from luthier.core.environment import Environment
from luthier.core.errors import PlanRefused, Problem
from luthier.core.frozen import FrozenDict, freeze, thaw
from luthier.core.memory import forecast
from luthier.core.plan import ModelReference, Plan, Precision, Rejected, SourceSummary, Step
from luthier.core.profile import ArchitectureProfile
from luthier.core.resolve.auto import AUTO_ORDER, fill
from luthier.core.resolve.checkpoint import checkpoint_problems, stored_terms
from luthier.core.resolve.compat import clashes
from luthier.core.resolve.demands import demands_of
from luthier.core.resolve.former import former_problems, settled, stacked
from luthier.core.resolve.picks import Answers, Pick, Situation, answer, claims_of, defect, examine, facts_of
from luthier.core.resolve.precision import decide_precision
from luthier.core.resolve.presets import Wishes, expand
from luthier.core.resolve.references import choose_reference, made_true, reference_terms
from luthier.core.resolve.streaming import streaming_problems
from luthier.core.schedule import OptimizerOptions
from luthier.core.scoring import profile_for, scores
from luthier.core.serial import to_plain

PHASE_ORDER: Final = {"load": 0, "loaded": 2, "attached": 4}
EXPERIMENTAL: Final = "is experimental here"
POSITIONS: Final = "positions.scale"
SLOT_ORDER: Final = {"attention": 1, "adapter": 3, "optimizer": 5, "stage": 6}


def resolve(
    config: RunConfig,
    *,
    model: ModelReference,
    profile: ArchitectureProfile,
    environment: Environment,
    catalog: Catalog,
    data: Sequence[SourceSummary] = (),
    answers: Answers | None = None,
) -> Plan:
    """The plan for this configuration, model, machine and set of plugins.

    `answers` is shared by calls that differ in nothing but the configuration, so that no method is asked twice.

    Raises PlanRefused with every problem found; its `draft` holds the steps and rejected candidates known by then.
    """
    config = settled(config, model)
    wishes, problems = expand(config, catalog)
    wishes = stacked(wishes, model, catalog)
    task = _task(wishes, catalog)
    profile, found = _profile_of(profile, task)
    problems += found
    situation = Situation(
        profile=profile,
        task=task,
        environment=environment,
        catalog=catalog,
        data=tuple(data),
        demands=demands_of(config, model),
        answers={} if answers is None else answers,
    )
    picks: list[Pick] = []
    # Slots of which it is not known what they hold: a need that they might meet is not reported as a second fault.
    wrong: dict[str, bool] = {}
    for wish in wishes.fixed:
        pick, found = examine(wish.slot, wish.choice, wish.why, situation)
        problems += found
        if pick is None:
            wrong[wish.slot] = True
        elif any(pick.title == other.title for other in picks):
            problems.append(_named_twice(pick))
        else:
            picks.append(pick)
    rejected: list[Rejected] = []
    left = [slot for slot in AUTO_ORDER if slot in wishes.auto]
    if "stage" in left and len(situation.data_kinds) > 1:
        problems.append(_mixed_kinds(situation))
        left.remove("stage")
        wrong["stage"] = True
    while left:
        slot = left.pop(0)
        chosen, passed, found = fill(slot, wishes.auto[slot], picks, situation, {**dict.fromkeys(left, False), **wrong})
        picks += chosen
        rejected += passed
        problems += found
        if found:
            wrong[slot] = True
    problems += clashes(picks, situation, wrong) + checkpoint_problems(picks, situation)
    problems += streaming_problems(config) + _unconsumed(config) + former_problems(model, picks)
    picks = sorted(picks, key=_execution_order)
    load_options, found = _load_options(picks, profile)
    problems += found
    terms, found = _memory_terms(picks, profile)
    problems += found
    terms += stored_terms(picks, situation)
    reference, found = choose_reference(picks, situation)
    problems += found
    steps = tuple(_step(pick, reference) for pick in picks)
    if problems:
        draft = {"model": to_plain(model), "steps": to_plain(steps), "rejected": to_plain(rejected)}
        raise PlanRefused(list(dict.fromkeys(problems)), draft)
    facts = facts_of(picks, situation) | made_true(reference)
    precision, warnings = decide_precision(config.precision, environment, facts)
    terms += reference_terms(reference, terms, profile, precision)
    plan = Plan(
        model=model,
        profile=profile,
        steps=steps,
        precision=precision,
        config=resolved_config(config, picks, precision),
        data=tuple(data),
        device=environment.device,
        task=task,
        traits=tuple(sorted(facts)),
        load_options=FrozenDict(freeze(load_options)),
        warnings=tuple(warnings + _warnings(config, picks, profile)),
        rejected=tuple(rejected),
        memory=forecast(profile, terms, precision, config.train.batch_tokens, packed=config.data.packing),
        isolate=any(isinstance(pick.method, ModelPatch) and pick.method.isolate for pick in picks),
    )
    problems = _stage_problems(picks, plan, catalog)
    if problems:
        raise PlanRefused(problems, {"model": to_plain(model), "steps": to_plain(steps), "rejected": to_plain(rejected)})
    return plan


def resolved_config(config: RunConfig, picks: Sequence[Pick], precision: Precision) -> FrozenDict[str, Any]:
    """The configuration as plain data with every slot named and every option written out; it parses to itself.

    The precision is the one that was taken: the run can be resumed where the dtype probe would decide otherwise.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name = field.name
        here = [pick for pick in picks if pick.slot == name]
        if here or name == "patches":
            written = [{"use": pick.name, **to_plain(pick.config)} for pick in here]
            plain[name] = written if name == "patches" else written[0]
        else:
            plain[name] = to_plain(getattr(config, name))
    plain["precision"] = precision.name
    return FrozenDict(freeze(plain))


def _task(wishes: Wishes, catalog: Catalog) -> Task:
    """What the named stage trains; `auto` and a stage that is not known train a language model."""
    stages = catalog.slot("stage")
    named = (stages[wish.choice.use].value for wish in wishes.fixed if wish.slot == "stage" and wish.choice.use in stages)
    return next((stage.task for stage in named if isinstance(stage, TrainingStage)), "causal")


def _profile_of(profile: ArchitectureProfile, task: Task) -> tuple[ArchitectureProfile, list[Problem]]:
    """The profile of the model that is loaded for a task; and the problem where there is no such model."""
    if task == "causal":
        return profile, []
    answer = scores(profile)
    problems = [] if answer else [Problem(reason=answer.reason, where="model", fix=answer.fix)]
    return profile_for(profile, task), problems


def _stage_problems(picks: Sequence[Pick], plan: Plan, catalog: Catalog) -> list[Problem]:
    """What the stage finds wrong with the whole plan."""
    for pick in picks:
        if isinstance(pick.method, TrainingStage):
            try:
                return list(pick.method.check_plan(plan, catalog, pick.config))
            except Exception as error:
                return [defect(pick.title, pick.offer, "in its `check_plan`", error)]
    return []


def _step(pick: Pick, reference: Reference | None) -> Step:
    options = FrozenDict(freeze(to_plain(pick.config)))
    return Step(
        slot=pick.slot,
        method=pick.name,
        provider=str(pick.offer.provider),
        config=options,
        why=pick.why,
        reference=reference if isinstance(pick.method, TrainingStage) else None,
    )


def _execution_order(pick: Pick) -> tuple[int, int, str]:
    if isinstance(pick.method, ModelPatch):
        return PHASE_ORDER[pick.method.phase], -pick.method.priority, pick.name
    return SLOT_ORDER[pick.slot], 0, pick.name


def _named_twice(pick: Pick) -> Problem:
    return Problem(reason=f"{pick.title} is named twice", methods=(pick.title,), fix="name it once, with all its options")


def _mixed_kinds(situation: Situation) -> Problem:
    """With a stage that is named, rows of another kind are its own problem (picks.py); `auto` cannot choose at all."""
    found = "; ".join(f"{source.path}: {source.kind}" for source in situation.data)
    reason = f"the data sources hold rows of different kinds: {found}"
    return Problem(reason=reason, where="data", fix="train on one kind at a time")


def _unconsumed(config: RunConfig) -> list[Problem]:
    """Keys that were set and that nothing in this run would read."""
    problems = []
    if config.train.eval_every is not None and not config.data.eval:
        problems.append(
            Problem(
                where="train.eval_every",
                reason="no rows are held out, so there is nothing to evaluate",
                fix="set data.eval, for example to 0.05",
            )
        )
    if config.data.mix == "concatenate":
        unread = ["data.stop"] if config.data.stop != DataConfig.stop else []
        unread += [f"data.train[{number}].weight" for number, one in enumerate(config.data.train) if one.weight != 1]
        reason, fix = "sources are put one after another, not drawn from", "leave it out, or set data.mix: interleave"
        problems += [Problem(where=where, reason=reason, fix=fix) for where in unread]
    return problems


def _load_options(picks: Sequence[Pick], profile: ArchitectureProfile) -> tuple[dict[str, Any], list[Problem]]:
    merged: dict[str, Any] = {}
    owner: dict[str, Pick] = {}
    problems: list[Problem] = []
    for pick in picks:
        try:
            wanted = dict(answer("load_options", pick.method.load_options(profile, pick.config), Mapping))  # type: ignore[type-abstract]
            json.dumps(thaw(wanted))
        except Exception as error:
            problems.append(defect(pick.title, pick.offer, "in its `load_options`", error))
            continue
        if isinstance(pick.method, AttentionKernel):
            wanted["attn_implementation"] = pick.method.implementation
        for key, value in wanted.items():
            if key in merged and merged[key] != value:
                titles = (owner[key].title, pick.title)
                reason = f"{titles[0]} and {titles[1]} both set the load option {key}: {merged[key]!r} against {value!r}"
                problems.append(Problem(reason=reason, methods=titles, fix="keep one of them"))
            merged[key], owner[key] = value, pick
    return merged, problems


def _memory_terms(picks: Sequence[Pick], profile: ArchitectureProfile) -> tuple[list[MemoryTerms], list[Problem]]:
    terms: list[MemoryTerms] = []
    problems: list[Problem] = []
    for pick in picks:
        try:
            terms.append(answer("memory", pick.method.memory(profile, pick.config), MemoryTerms))
        except Exception as error:
            problems.append(defect(pick.title, pick.offer, "in its `memory`", error))
    return terms, problems


def _warnings(config: RunConfig, picks: Sequence[Pick], profile: ArchitectureProfile) -> list[str]:
    warnings = [
        f"{pick.title} {EXPERIMENTAL}: {pick.support.reason}" for pick in picks if pick.support.kind == "experimental"
    ]
    for pick in picks:
        if isinstance(pick.method, OptimizerMethod) and not isinstance(pick.config, OptimizerOptions):
            warnings.append(f"{pick.title} has no schedule and clipping options: it trains at a constant rate, unclipped")
    longest, context = config.data.max_length, profile.context_length
    if context is not None and longest > context and POSITIONS not in claims_of(picks):
        warnings.append(
            f"data.max_length is {longest}, and the model knows {context} positions: it learns nothing good from tokens "
            f"beyond them. Lower it, or scale the positions with a patch that claims {POSITIONS}"
        )
    warnings += [f"not understood in the model, and left alone: {item.module} ({item.why})" for item in profile.unclassified]
    return warnings
