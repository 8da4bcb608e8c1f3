"""Supervised fine-tuning, from top to bottom.

    rows -> token ids and labels        done by the data worker: labels are -100 wherever nothing is to be learned
    lengths -> the run's micro-batches  rows of similar length together, or packed, at most `batch_tokens` tokens in each
    micro-batches -> optimizer steps    cross-entropy of the next token, every supervised token of a step weighs the same

The held-out loss is measured every `train.eval_every` steps and at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.language_modeling import announce, batches, check_packing
from luthier.core.trainer import RunTrainer

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


def train(runtime: Runtime) -> dict[str, float]:
    """Run the stage; returns the totals of training, and `eval_loss` where rows are held out."""
    parts = batches(runtime)
    announce(runtime, parts)
    check_packing(runtime, parts)
    trainer = RunTrainer(runtime=runtime, schedule=parts.train, eval_schedule=parts.held_out, data_collator=parts.collate)
    return trainer.fit()
