"""Supervised fine-tuning, from top to bottom.

    rows -> token ids and labels        done by the data worker: labels are -100 wherever nothing is to be learned
    lengths -> the run's micro-batches  rows of similar length together, or packed, at most `batch_tokens` tokens in each
    micro-batches -> optimizer steps    cross-entropy of the next token, every supervised token of a step weighs the same
    held-out rows -> metrics            their loss, and answers to them against what they say, as `evaluate_by` asks

Evaluated every `train.eval_every` steps and at the end; the best evaluation's weights can be kept, and a run can end early
(core/best.py). With `label_smoothing` e, a token of target y costs, over a vocabulary of V tokens,

    (1 - e) * -log p(y)  +  e * mean over all V of -log p

summed over the step's supervised tokens and divided by their number, as without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.functional import cross_entropy

from luthier.core.best import compare_by
from luthier.core.errors import LuthierError
from luthier.core.evaluation.held_out import HeldOutAnswers
from luthier.core.language_modeling import announce, batches, check_packing
from luthier.core.progress import IGNORED
from luthier.core.trainer import RunTrainer

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.runtime import Runtime
    from luthier.plugins.sft import SftConfig


def train(runtime: Runtime, config: SftConfig) -> dict[str, float]:
    """Run the stage; returns the totals of training, and the metrics of the held-out rows where there are any."""
    parts = batches(runtime)
    announce(runtime, parts)
    check_packing(runtime, parts)
    answers = None
    if config.text_metrics:
        answers = HeldOutAnswers(
            runtime, config.text_metrics, at_most=config.eval_samples, max_new_tokens=config.max_new_tokens
        )
    trainer = SftTrainer(
        runtime=runtime,
        schedule=parts.train,
        eval_schedule=parts.held_out,
        data_collator=parts.collate,
        best=compare_by(config.keep_best, config),
        measure=answers,
        measure_loss="loss" in config.evaluate_by,
        label_smoothing=config.label_smoothing,
    )
    return trainer.fit()


class SftTrainer(RunTrainer):
    """The token-weighted loss with label smoothing while it trains; plain where it is 0, and in evaluation."""

    def __init__(self, *, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._smoothing = label_smoothing
        if label_smoothing and getattr(self.model.config, "output_router_logits", False):
            raise LuthierError(
                "this model adds a loss of its routers to that of its tokens (output_router_logits), which smoothed labels "
                "would leave out",
                where="stage.label_smoothing",
                fix="leave out label_smoothing",
            )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As RunTrainer's, over `num_items_in_batch` supervised tokens; with smoothed labels in training mode."""
        if not self._smoothing or not model.training or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = smoothed_loss(outputs.logits, inputs["labels"], self._smoothing) / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Of `logits` (B, T, V) and `labels` (B, T), the sum over supervised tokens, each predicted from the position before it.

    In float32 at least.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORED
    predicted = logits[:, :-1][supervised]
    predicted = predicted.float() if predicted.element_size() < 4 else predicted
    return cross_entropy(predicted, targets[supervised], label_smoothing=smoothing, reduction="sum")
