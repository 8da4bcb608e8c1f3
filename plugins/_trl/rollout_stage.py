"""What the stages on rollouts do before the first step: prompts that fit, their schedule, the reward, what is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.errors import DataError, LuthierError
from luthier.core.generation import Sampling
from luthier.core.references import ReferencePolicy
from luthier.core.rewards import open_rewards
from luthier.core.schedule import clipped_warmup
from luthier.plugins._trl.arguments import trl_arguments
from luthier.plugins._trl.rollout_schedule import RolloutSchedule

if TYPE_CHECKING:
    from luthier.core.data import Examples
    from luthier.core.runtime import Runtime
    from luthier.plugins._trl.rollout_options import RolloutOptions


def rollout_trainer(
    trainer: type[Any], arguments: type[Any], runtime: Runtime, config: RolloutOptions, *, beta: float, **options: Any
) -> Any:
    """A `trainer` (a class with RolloutMixin) ready to `fit()`; `options` are those of TRL's `arguments` class.

    Raises DataError where no prompt fits or one lacks the reference that a reward needs, RewardError where a reward cannot
    be opened, LuthierError for `train.accumulation`.
    """
    data, train, tokenizer = runtime.data, runtime.config.train, runtime.tokenizer
    assert data is not None
    assert tokenizer is not None
    assert runtime.model is not None
    if train.accumulation != 1:
        raise LuthierError(
            "has no effect here: a step has prompts_per_step prompts, in as many micro-batches as they need",
            where="train.accumulation",
            fix="take it out, and set `prompts_per_step` of the stage",
        )
    rows = fitting(runtime, data.train, config.max_new_tokens, "to train on")
    held_out = fitting(runtime, data.eval, config.max_new_tokens, "held out") if data.eval.rows else None
    rewards = open_rewards(config.reward, runtime=runtime)
    for part in (rows, held_out):
        if part is not None:
            rewards.check(part)
    step = runtime.plan.step("stage")
    reference = ReferencePolicy(runtime.model, step.reference) if step.reference else None  # type: ignore[arg-type]
    schedule = RolloutSchedule(
        rows.rows,
        longest=int(rows.lengths.max()) + config.max_new_tokens,
        batch_tokens=train.batch_tokens,
        num_generations=config.num_generations,
        prompts_per_step=config.prompts_per_step,
        steps_per_generation=config.steps_per_generation,
        num_iterations=config.num_iterations,
        epochs=train.epochs,
        max_steps=train.max_steps,
        seed=train.seed,
    )
    announce(runtime, schedule, rows, held_out)
    args = trl_arguments(
        arguments,
        runtime,
        schedule.steps,
        per_device_train_batch_size=schedule.answers,
        gradient_accumulation_steps=schedule.accumulation,
        steps_per_generation=schedule.accumulation * config.steps_per_generation,
        num_iterations=config.num_iterations,
        num_generations=config.num_generations,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        mask_truncated_completions=config.mask_truncated,
        beta=0.0,  # RolloutMixin has the real one
        router_aux_loss_coef=0.0,
        **options,
    )
    return trainer(
        runtime=runtime,
        schedule=schedule,
        args=args,
        rows=rows,
        held_out=held_out,
        rewards=rewards,
        sampling=Sampling(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
        ),
        beta=beta,
        reference=reference,
    )


def fitting(runtime: Runtime, rows: Examples, new_tokens: int, what: str) -> Examples:
    """The prompts that leave room for an answer within the model's context; the others are counted in a warning.

    Raises DataError where none does.
    """
    context = runtime.plan.profile.context_length
    if context is None:
        return rows
    fits = rows.lengths + new_tokens <= context
    left_out = int(np.count_nonzero(~fits))
    if not left_out:
        return rows
    why = f"with max_new_tokens ({new_tokens}) they are longer than the model's context ({context} tokens)"
    if not fits.any():
        raise DataError(
            f"none of the {rows.rows} prompts {what} can be answered: {why}",
            where="data",
            fix="lower max_new_tokens, or take shorter prompts",
        )
    runtime.emit("warning", f"{left_out} of {rows.rows} prompts {what} left out: {why}")
    return rows.where(fits)


def announce(runtime: Runtime, schedule: RolloutSchedule, rows: Examples, held_out: Examples | None) -> None:
    """The "start" event, and warnings where prompts do not fit the batches, or the warm-up the steps."""
    runtime.emit(
        "start",
        steps=schedule.steps,
        rows=rows.rows,
        held_out=held_out.rows if held_out is not None else 0,
        padding=0.0,
        packing_efficiency=None,
        resumed_from=runtime.resume_from.name if runtime.resume_from else None,
    )
    answers = schedule.prompts * schedule.num_generations
    runtime.notice(
        f"rollouts: {schedule.prompts} prompts with {schedule.num_generations} answers each, {answers} in all, for "
        f"{schedule.steps_per_rollout} optimizer step{'s' if schedule.steps_per_rollout > 1 else ''} of "
        f"{schedule.accumulation} micro-batches with {schedule.answers} answers"
    )
    if schedule.oversized:
        runtime.emit(
            "warning",
            f"the longest prompt with an answer of max_new_tokens is longer than train.batch_tokens "
            f"({schedule.batch_tokens}): it needs more memory",
        )
    _, optimizer = runtime.method(runtime.plan.step("optimizer"))
    clipped = clipped_warmup(optimizer, schedule.steps)
    if clipped:
        runtime.emit("warning", clipped)
