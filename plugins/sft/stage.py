"""Supervised fine-tuning, from top to bottom.

    rows -> token ids and labels        done by the data worker: labels are -100 wherever nothing is to be learned
    lengths -> the run's micro-batches  rows of similar length together, at most `batch_tokens` tokens with padding
    micro-batches -> optimizer steps    cross-entropy of the next token, every supervised token of a step weighs the same

The held-out loss is measured every `train.eval_every` steps and at the end.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from luthier.core.data import BatchSchedule, collate
from luthier.core.schedule import clipped_warmup
from luthier.core.trainer import RunTrainer

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


def train(runtime: Runtime) -> dict[str, float]:
    """Run the stage; returns the totals of training, and `eval_loss` where rows are held out."""
    data, options = runtime.data, runtime.config.train
    assert data is not None
    assert runtime.tokenizer is not None
    schedule = BatchSchedule(
        data.train.lengths,
        batch_tokens=options.batch_tokens,
        accumulation=options.accumulation,
        epochs=options.epochs,
        seed=options.seed,
        max_steps=options.max_steps,
    )
    held_out = None
    if len(data.eval):
        held_out = BatchSchedule(
            data.eval.lengths, batch_tokens=options.batch_tokens, accumulation=1, epochs=1, seed=0, max_steps=None
        )
    runtime.emit(
        "start",
        steps=schedule.steps,
        rows=len(data.train),
        held_out=len(data.eval),
        padding=schedule.padding,
        resumed_from=runtime.resume_from.name if runtime.resume_from else None,
    )
    if schedule.oversized:
        limit = f"train.batch_tokens ({options.batch_tokens})"
        runtime.emit(
            "warning", f"{schedule.oversized} batches of a single row are longer than {limit}: they need more memory"
        )
    _, optimizer = runtime.method(runtime.plan.step("optimizer"))
    clipped = clipped_warmup(optimizer, schedule.steps)
    if clipped:
        runtime.emit("warning", clipped)
    trainer = RunTrainer(
        runtime=runtime,
        schedule=schedule,
        eval_schedule=held_out,
        data_collator=partial(collate, pad_token_id=runtime.tokenizer.pad_token_id),
    )
    return trainer.fit()
