"""TRL's trainers on our model and our batches: `class DpoTrainer(TrlMixin, trl.DPOTrainer)`.

TRL's constructors change the model that they are given: a second adapter, weights cast to bf16, another forward, tags, other
special tokens. So they are given a stand-in with the model's configuration, and the model takes its place afterwards. From
then on a trainer of TRL does what it is here for, the loss.

    loss of an optimizer step = sum over its micro-batches of (TRL's mean over the rows * rows) / rows of the step

so that every row of a step weighs the same, however it is split into micro-batches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GenerationConfig

from luthier.core.errors import LuthierError
from luthier.core.trainer import RunTrainerMixin

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from luthier.core.runtime import Runtime
    from luthier.plugins._trl.batches import RowBatches

# TRL's names of what it measures, and what it is called in our events; held-out with "eval_" before it.
PAIR_METRICS: Final[dict[str, str]] = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
}


class TrlMixin(RunTrainerMixin):
    """Before a trainer class of TRL.

        trainer = DpoTrainer(runtime=runtime, batches=pair_batches(runtime), args=trl_arguments(DPOConfig, runtime, steps))
        metrics = trainer.fit()

    reported           which of TRL's metrics are told, and under which names: means over rows
    sequences_per_row  sequences that a row has in `input_ids`
    evaluate_first     whether the held-out rows are measured before the first step too

    What TRL's `compute_loss` returns is taken for the mean over the rows of a micro-batch. Further keyword arguments are for
    TRL's constructor.
    """

    reported: ClassVar[Mapping[str, str]] = PAIR_METRICS
    sequences_per_row: ClassVar[int] = 2
    evaluate_first: ClassVar[bool] = True

    loss_is_scaled_for_ga: Any
    callback_handler: Any
    accelerator: Any
    data_collator: Any

    def __init__(self, *, runtime: Runtime, batches: RowBatches, args: TrainingArguments, **kwargs: Any) -> None:
        assert runtime.model is not None
        self._rows: dict[str, list[int]] = {"train": [], "eval": []}  # of each micro-batch since the last report
        super().__init__(
            model=stand_in(runtime.model),
            args=args,
            processing_class=copy.deepcopy(runtime.tokenizer),
            train_dataset=placeholder(),
            data_collator=batches.collate,
            runtime=runtime,
            schedule=batches.train,
            **kwargs,
        )
        self.model = self.model_wrapped = self.callback_handler.model = runtime.model
        # With a tokenizer, Trainer would change the model's special tokens when training begins.
        self.processing_class = self.callback_handler.processing_class = None
        self.train_dataset, self.eval_dataset = batches.train_rows, batches.eval_rows
        self.eval_schedule = batches.held_out
        # `compute_loss` has done the division. 5.23 is told by the first line, older releases by the second.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows are tokens already."""
        return dataset

    # ---- the loss of a step

    def count_rows(self, inputs: Mapping[str, Any]) -> int:
        """The rows of a micro-batch."""
        return int(inputs["input_ids"].shape[0]) // self.sequences_per_row

    def trained_tokens(self, inputs: Mapping[str, Any]) -> Any:
        """How many tokens of a micro-batch are learned, in all sequences."""
        return inputs["completion_mask"][:, 1:].sum()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, counted, and the rows in all of them."""
        self.watch.begin()
        found = super(RunTrainerMixin, self).get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        batches: list[Any] = found[0]
        self.watch.count(batches, trained=sum(self.trained_tokens(batch) for batch in batches))
        return batches, found[1]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return sum(self.count_rows(batch) for batch in batch_samples)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Any:
        """Its part of the mean over the `num_items_in_batch` rows of a step; its own mean if that is None."""
        rows = self.count_rows(inputs)
        self._rows["train" if self.model.training else "eval"].append(rows)
        loss: Tensor = super().compute_loss(model, inputs)  # type: ignore[misc]
        return loss if num_items_in_batch is None else loss * (rows / num_items_in_batch)

    # ---- what is told

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's report, with the means over rows of what TRL measured in the micro-batches since the last one."""
        logs.update(self.measured("train"))
        super().log(logs, start_time)  # type: ignore[misc]

    def measured(self, mode: str) -> dict[str, float]:
        """The means over rows of TRL's metrics since they were last asked for, under our names; they begin anew."""
        # The experimental trainers of TRL keep theirs under another name.
        store: Any = getattr(self, "_metrics", None) or getattr(self, "_stored_metrics", None) or {}
        kept, rows = store.get(mode, {}), self._rows[mode]
        means = {}
        for theirs, ours in self.reported.items():
            values = [float(value) for value in kept.get(theirs, ())]
            if len(values) != len(rows):
                raise LuthierError(  # never with the TRL that this was written for
                    f"TRL has {len(values)} values of {theirs} for {len(rows)} micro-batches",
                    where="stage",
                    fix="install the release of trl that constraints.txt names",
                )
            if rows:
                means[ours] = sum(value * weight for value, weight in zip(values, rows, strict=True)) / sum(rows)
        kept.clear()
        rows.clear()
        return means

    def fit(self) -> dict[str, float]:
        """As in every stage; before the first step the held-out rows are measured too, where that says something."""
        if self.evaluate_first and self.eval_dataset is not None and self.runtime.resume_from is None:
            self.evaluate()
        return super().fit()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """`eval_loss` and the means of `reported` over the held-out rows, each counted once. Leaves the model as it was."""
        total, rows = 0.0, 0
        with self.held_out_batches() as batches:
            for inputs in batches:
                here = self.count_rows(inputs)
                total += float(self.compute_loss(self.model, inputs)) * here
                rows += here
        means = {f"eval_{name}": value for name, value in self.measured("eval").items()}
        metrics = {"eval_loss": total / rows, **means, "eval_rows": rows}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class StandIn(nn.Module):
    """What TRL's constructors need of a model: a configuration, and names to hang their changes on."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.generation_config = GenerationConfig()
        self.is_gradient_checkpointing = False

    def forward(self, **inputs: Any) -> Any:
        raise RuntimeError("TRL computes its loss on the model of the run")

    def add_model_tags(self, tags: Any) -> None:
        """The run's own card says what was trained."""

    def get_output_embeddings(self) -> None:
        return None


def stand_in(model: Any) -> Any:
    """A stand-in for `model`, with a copy of its configuration."""
    return StandIn(copy.deepcopy(model.config))


def placeholder() -> Dataset:
    """One row, because TRL takes no other data sets: it is never trained on."""
    row = Dataset.from_dict({"prompt": ["."], "chosen": ["."], "rejected": ["."], "completion": ["."], "label": [True]})
    # The experimental trainers tokenise what they are given.
    row.map = lambda *args, **kwargs: row
    row.filter = lambda *args, **kwargs: row
    return row
