"""What the stages have in common that learn to predict the next token: their batches, and that packing is safe.

    batches(runtime)               the run's micro-batches, those of the held-out rows, and how rows become tensors
    announce(runtime, batches)     what the user is told before the first step
    check_packing(runtime, batches)  on the real model, once: packed documents do not see each other

Whether a model can be trained this way (`predicts_next_token`) is asked for a plan, so nothing heavy is imported here.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from luthier.core.contracts import Support
from luthier.core.environment import Environment
from luthier.core.errors import LuthierError
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.data import BatchSchedule, Example, Examples
    from luthier.core.data.collate import Collate
    from luthier.core.data.stream import StreamSchedule
    from luthier.core.runtime import Runtime

# Tokens of each document that are compared: enough to see another one, and two short forward passes.
COMPARED: Final = 64
# How far the logits of a token may be off by rounding, as a part of their norm: with float32, and with fewer bits.
EXACT: Final = 1e-3
ROUNDED: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Micro-batches of the run and of the held-out rows (None when there are none), and how examples become tensors.

    `first_together` are the rows of the first micro-batch that holds several; empty where each holds one.
    """

    train: BatchSchedule | StreamSchedule
    held_out: BatchSchedule | None
    collate: Collate
    first_together: tuple[Example, ...]


def predicts_next_token(profile: ArchitectureProfile, environment: Environment, config: object) -> Support:
    """A stage's `supports`. No where transformers' class has a loss of its own instead of `loss_function`.

    Only `loss_function` shifts the labels and weighs by tokens: decoders cut out of encoder-decoder models (Bart, Whisper,
    ...) and a few old designs compare each token with itself.
    """
    import transformers

    cls = getattr(transformers, profile.architecture, None)
    if profile.remote_code or cls is None or "loss_function(" in inspect.getsource(inspect.unwrap(cls.forward)):
        return Support.yes()
    return Support.no(
        f"transformers' {profile.architecture} has a loss of its own, which is not that of the next token",
        "choose a model that was made to continue text",
    )


def batches(runtime: Runtime) -> Batches:
    """The batches that `train` and `data.packing` ask for, over the prepared rows or the stream."""
    from luthier.core.data import BatchSchedule
    from luthier.core.data.collate import collate, collate_packed

    data, options, packing = runtime.data, runtime.config.train, runtime.config.data.packing
    assert data is not None
    assert runtime.tokenizer is not None
    held_out = None
    if len(data.eval):
        held_out = BatchSchedule(data.eval.lengths, batch_tokens=options.batch_tokens, packing=packing)
    collator = collate_packed if packing else partial(collate, pad_token_id=runtime.tokenizer.pad_token_id)
    if runtime.stream is not None:
        first = runtime.stream.first
        assert first.schedule is not None
        together = first_together(first.schedule, first.examples)
        return Batches(train=runtime.stream, held_out=held_out, collate=collator, first_together=together)
    schedule = BatchSchedule(
        data.train.lengths,
        batch_tokens=options.batch_tokens,
        accumulation=options.accumulation,
        epochs=options.epochs,
        seed=options.seed,
        max_steps=options.max_steps,
        packing=packing,
    )
    together = first_together(schedule, data.train)
    return Batches(train=schedule, held_out=held_out, collate=collator, first_together=together)


def first_together(schedule: BatchSchedule, rows: Examples) -> tuple[Example, ...]:
    """The rows of the first micro-batch that holds several; none where each holds one."""
    found = next((batch for batch in schedule if len(batch) > 1), [])
    return tuple(rows[row] for row in found)


def announce(runtime: Runtime, batches: Batches) -> None:
    """The "start" event, and warnings where rows do not fit the batches, or the warm-up the steps.

    Of a stream, its first window is known.
    """
    from luthier.core.schedule import clipped_warmup

    schedule, data = batches.train, runtime.data
    assert data is not None
    runtime.emit(
        "start",
        steps=schedule.steps,
        rows=data.train.rows if runtime.stream is None else None,
        held_out=data.eval.rows,
        padding=schedule.padding,
        packing_efficiency=schedule.efficiency if schedule.packing else None,
        resumed_from=runtime.resume_from.name if runtime.resume_from else None,
    )
    if schedule.oversized:
        limit = f"train.batch_tokens ({schedule.batch_tokens})"
        runtime.emit(
            "warning", f"{schedule.oversized} batches of a single row are longer than {limit}: they need more memory"
        )
    _, optimizer = runtime.method(runtime.plan.step("optimizer"))
    clipped = clipped_warmup(optimizer, schedule.steps)
    if clipped:
        runtime.emit("warning", clipped)


def check_packing(runtime: Runtime, batches: Batches) -> None:
    """Compare the logits of two documents, packed and apart, on the model as it is about to train.

    The plan has refused what is known to mix documents; this finds what the plan could not know: code that comes with a
    model, a patched forward, a kernel that promises too much. Raises LuthierError where they differ.
    """
    if not batches.train.packing:
        return
    if not batches.first_together:
        runtime.notice("packing: every row fills a batch of its own, so no two documents meet in one")
        return
    documents = [_beginning(example) for example in batches.first_together[:2]]
    off, limit = packing_error(runtime, documents), _limit(runtime)
    if not off <= limit:
        raise LuthierError(
            f"packed documents see each other: the logits of two documents differ by {off:.1%} between packed and apart, "
            f"where rounding explains {limit:.1%}",
            where="data.packing",
            fix="leave out data.packing, or take another attention kernel",
        )
    runtime.notice(f"packing: documents are kept apart (logits of two of them, packed and apart, differ by {off:.1e})")


def packing_error(runtime: Runtime, documents: list[Example]) -> float:
    """How far packed logits are from those of the documents apart, in evaluation mode: the median over a document's tokens.

    Each token's error is a part of the norm of its logits; the greater median of the documents counts. A median, because
    rounding may send single tokens to other experts, and a document that sees another is wrong at every token.
    """
    import torch

    from luthier.core.data.collate import collate, collate_packed

    assert runtime.tokenizer is not None
    model: Any = runtime.model
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = _logits(runtime, collate_packed(documents))[0]
            apart = _logits(runtime, collate(documents, pad_token_id=runtime.tokenizer.pad_token_id))
    finally:
        model.train(was_training)
    worst, begin = 0.0, 0
    for row, document in enumerate(documents):
        length = len(document["input_ids"])
        expected = apart[row, :length].float()
        error = (packed[begin : begin + length].float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-30)
        worst = max(worst, float(error.median()))
        begin += length
    return worst


def _logits(runtime: Runtime, batch: dict[str, Any]) -> Tensor:
    import torch

    inputs = {
        name: value.to(runtime.plan.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    logits: Tensor = runtime.model(**inputs, use_cache=False).logits  # type: ignore[misc]
    return logits


def _beginning(example: Example) -> Example:
    return {"input_ids": example["input_ids"][:COMPARED], "labels": example["labels"][:COMPARED]}


def _limit(runtime: Runtime) -> float:
    plan = runtime.plan
    stored_in_full = not {"weights.quantized", "model.prequantized"} & set(plan.traits)
    return EXACT if plan.precision.weights == "float32" and stored_in_full else ROUNDED
