"""Pre-training, from top to bottom.

    rows -> token ids               done by the data worker: every token of a text is learned, its end included
    lengths -> micro-batches        texts of similar length together, or packed, at most `batch_tokens` tokens in each
    micro-batches -> optimizer steps  cross-entropy of the next token, every token of a step weighs the same

The held-out loss is measured every `train.eval_every` steps and at the end; its exponential is the perplexity. The best
evaluation's weights can be kept, and a run can end early (core/best.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.best import compare_by
from luthier.core.evaluation.losses import perplexity
from luthier.core.language_modeling import announce, batches, check_packing
from luthier.core.trainer import RunTrainer

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins.pt import PtConfig


def train(runtime: Runtime, config: PtConfig) -> dict[str, float]:
    """Run the stage; returns the totals of training, and `eval_loss` and `eval_perplexity` where rows are held out."""
    parts = batches(runtime)
    announce(runtime, parts)
    check_packing(runtime, parts)
    trainer = PtTrainer(
        runtime=runtime,
        schedule=parts.train,
        eval_schedule=parts.held_out,
        data_collator=parts.collate,
        best=compare_by(config.keep_best, config),
    )
    return trainer.fit()


class PtTrainer(RunTrainer):
    """Every evaluation has the perplexity beside the loss."""

    def _held_out_loss(self) -> dict[str, float]:
        metrics = super()._held_out_loss()
        return metrics | {"eval_perplexity": perplexity(metrics["eval_loss"])}
