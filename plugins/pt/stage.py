"""Pre-training, from top to bottom.

    rows -> token ids               done by the data worker: every token of a text is learned, its end included
    lengths -> micro-batches        texts of similar length together, or packed, at most `batch_tokens` tokens in each
    micro-batches -> optimizer steps  cross-entropy of the next token, every token of a step weighs the same

The held-out loss is measured every `train.eval_every` steps and at the end; its exponential is the perplexity.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from luthier.core.language_modeling import announce, batches, check_packing
from luthier.core.trainer import RunTrainer

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime

LARGEST: Final = 700.0  # exp() of more is no float; so bad a model has lost far more than its digits


def train(runtime: Runtime) -> dict[str, float]:
    """Run the stage; returns the totals of training, and `eval_loss` and `eval_perplexity` where rows are held out."""
    parts = batches(runtime)
    announce(runtime, parts)
    check_packing(runtime, parts)
    trainer = RunTrainer(runtime=runtime, schedule=parts.train, eval_schedule=parts.held_out, data_collator=parts.collate)
    metrics = trainer.fit()
    if "eval_loss" in metrics:
        metrics["eval_perplexity"] = math.exp(min(metrics["eval_loss"], LARGEST))
    return metrics
