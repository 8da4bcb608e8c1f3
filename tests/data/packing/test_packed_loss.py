"""Loss and gradients of packed documents are those of the documents apart: of the model, of a step, of held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from luthier.core.data import BatchSchedule, collate
from luthier.core.data.collate import collate_packed
from luthier.core.language_modeling import batches
from luthier.core.optimizing import trained_parameters
from luthier.core.progress import supervised_tokens
from luthier.core.testing.measuring import shake, wrong_gradients
from luthier.core.trainer import RunTrainer

KINDS = ("llama", "qwen3", "gpt2", "gemma2", "mixtral", "phi3")
CASES = [(kind, kernel) for kind in KINDS for kernel in ("sdpa", "eager") if (kind, kernel) != ("gemma2", "sdpa")]
TOLERANCE = 1e-5


def summed(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The sum of the token losses of a batch."""
    loss: torch.Tensor = model(**batch, use_cache=False).loss * supervised_tokens(batch["labels"])
    return loss


def step(model: Any, batches: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients over all micro-batches, each token weighing the same."""
    model.zero_grad(set_to_none=True)
    tokens = sum(int(supervised_tokens(batch["labels"])) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = summed(model, batch) / tokens
        loss.backward()
        total += float(loss.detach())
    found = {name: one.grad.clone() for name, one in trained_parameters(model).items() if one.grad is not None}
    return total, found


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_packed_is_apart(make_run: Callable[..., Any], documents: Any, kind: str, attention: str, adapter: str) -> None:
    """Documents longer than the windows of gemma2 (8), one of a single token, and two packed batches in a step."""
    model = make_run(kind, attention=attention, adapter=adapter).runtime.model
    shake(model)  # LoRA starts at zero, where half of its gradients are
    rows = list(documents())
    apart = [collate([row], pad_token_id=0) for row in rows if len(row["input_ids"]) > 1]
    expected, gradients = step(model, apart)
    for split in ([rows], [rows[:5], rows[5:]]):
        loss, found = step(model, [collate_packed(part) for part in split])
        assert loss == pytest.approx(expected, rel=TOLERANCE)
        assert not wrong_gradients(found, gradients, TOLERANCE)
    # That the comparison can fail: in one row without positions documents do see each other.
    mixed = {name: collate_packed(rows)[name] for name in ("input_ids", "labels")}
    loss, found = step(model, [mixed])
    assert abs(loss - expected) > 100 * TOLERANCE * expected
    assert wrong_gradients(found, gradients, 100 * TOLERANCE)


def fitted(made: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    runtime = made.runtime
    parts = batches(runtime)
    trainer = RunTrainer(runtime=runtime, schedule=parts.train, eval_schedule=parts.held_out, data_collator=parts.collate)
    metrics = trainer.fit()
    return metrics, {name: value.detach().clone() for name, value in trained_parameters(runtime.model).items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_packed_run_is_a_padded_run(make_run: Callable[..., Any], documents: Any, kind: str) -> None:
    """Two optimizer steps over all rows: micro-batches that hold other rows together give the same weights and losses.

    SGD, because Adam's first steps divide by the gradient: what is zero but for rounding would move by the whole rate.
    """
    ran = {}
    for packing in (True, False):
        per_epoch = len(BatchSchedule(documents().lengths, batch_tokens=64, packing=packing))
        made = make_run(
            kind,
            packing=packing,
            optimizer={"use": "sgd", "options": {"lr": 0.05, "schedule": "constant", "warmup": 0}},
            held_out=(11, 30, 5, 22, 4),
            train={"batch_tokens": 64, "accumulation": per_epoch, "epochs": 2},
        )
        ran[packing] = fitted(made)
    (packed, packed_weights), (padded, padded_weights) = ran[True], ran[False]
    assert packed["steps"] == padded["steps"] == 2
    assert packed["tokens"] == padded["tokens"] == 2 * documents().lengths.sum()
    assert packed["trained_tokens"] == padded["trained_tokens"]
    assert packed["eval_tokens"] == padded["eval_tokens"]
    assert packed["train_loss"] == pytest.approx(padded["train_loss"], rel=TOLERANCE)
    assert packed["eval_loss"] == pytest.approx(padded["eval_loss"], rel=TOLERANCE)
    for name, expected in padded_weights.items():
        torch.testing.assert_close(packed_weights[name], expected, rtol=TOLERANCE, atol=1e-6)
