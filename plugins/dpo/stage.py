"""Direct preference optimisation, from top to bottom.

    rows -> chosen and rejected token ids, labels on the answers        done by the data worker
    lengths -> the run's micro-batches      pairs of similar length together, both sequences within `batch_tokens`
    reference                               log-probabilities of the answers under the model as training found it
    micro-batches -> optimizer steps        TRL's loss of how much the answers have moved, every row weighs the same

        reward(answer) = beta * (log p(answer | prompt) - log p_reference(answer | prompt))
        loss           = -log sigmoid(reward(chosen) - reward(rejected))                          for `loss: sigmoid`

The reference is given to TRL as if it had been precomputed: TRL never switches an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from luthier.core.data.examples import IGNORED
from luthier.core.errors import Interrupted
from luthier.core.language_modeling import announce
from luthier.core.references import WORDS, ReferencePolicy
from luthier.core.trainer_settings import cache_setting
from luthier.plugins._trl.arguments import trl_arguments
from luthier.plugins._trl.batches import Pairs, PairSchedule, RowBatches, pair_batches
from luthier.plugins._trl.scoring import TokenScorer, sequence_log_probs
from luthier.plugins._trl.trainer import TrlMixin, stand_in

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins.dpo import DpoConfig

REFERENCE: Final = ("ref_chosen_logps", "ref_rejected_logps")  # as TRL calls them


def train(runtime: Runtime, config: DpoConfig) -> dict[str, float]:
    """Run the stage; returns the totals of training, and loss, accuracy and margin of the held-out rows."""
    batches = pair_batches(runtime)
    announce(runtime, batches)
    return DpoTrainer(runtime, batches, config).fit()


class DpoTrainer(TrlMixin, DPOTrainer):  # type: ignore[misc]
    """TRL's, with the reference that the plan names."""

    # Before the first step policy and reference are the same: every reward is 0.
    evaluate_first: ClassVar[bool] = False

    def __init__(self, runtime: Runtime, batches: RowBatches, config: DpoConfig) -> None:
        how: Any = runtime.plan.step("stage").reference
        runtime.notice(f"reference: {WORDS[how]}")
        # Before a checkpoint is loaded, and before anything trains.
        model: Any = runtime.model
        self.reference = ReferencePolicy(model, how)
        routed = getattr(model.config, "output_router_logits", False)
        arguments = trl_arguments(
            DPOConfig,
            runtime,
            batches.train.steps,
            loss_type=list(config.weights),
            loss_weights=list(config.weights.values()),
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            f_divergence_type=config.divergence,
            f_alpha_divergence_coef=config.divergence_alpha,
            ld_alpha=config.ld_alpha,
            discopop_tau=config.discopop_tau,
            # As in every stage: what balances the experts is part of the loss where the model's configuration says so.
            router_aux_loss_coef=None if routed else 0.0,
        )
        super().__init__(runtime=runtime, batches=batches, args=arguments, ref_model=stand_in(model))
        # From here on TRL takes the reference from the batches.
        self.ref_model, self.precompute_ref_logps = None, True
        self._of_tokens = config.weights.get("sft", 0.0)
        self._chosen_tokens = 0
        if how == "precomputed":
            self._precompute(batches)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """TRL's loss of a micro-batch of 2B sequences; see `TrlMixin`."""
        if REFERENCE[0] not in inputs:
            inputs = inputs | dict(zip(REFERENCE, self.reference_log_probs(inputs), strict=True))
        policy = TokenScorer(model)
        loss = super().compute_loss(policy, inputs, return_outputs, num_items_in_batch)
        if self._of_tokens and num_items_in_batch is not None:
            # TRL's `sft` is a mean over tokens: every token of the step weighs the same, not every row.
            rows = self.count_rows(inputs)
            tokens = int(inputs["completion_mask"][:rows, 1:].sum())
            mean = -policy.last.log_probs[:rows].sum() / tokens
            loss = loss + self._of_tokens * mean * (tokens / self._chosen_tokens - rows / num_items_in_batch)
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        masks = [batch["completion_mask"][: self.count_rows(batch), 1:] for batch in batch_samples]
        self._chosen_tokens = sum(int(mask.sum()) for mask in masks)
        return super()._get_num_items_in_batch(batch_samples, device)

    # ---- the reference

    def reference_log_probs(self, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        """Of the chosen and of the rejected answers, float32 (B,) each."""
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, IGNORED)
        with torch.no_grad(), self.accelerator.autocast(), self.reference() as frozen:
            scores = TokenScorer(frozen)(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, labels=labels
            )
        return sequence_log_probs(scores.log_probs, mask, self.ld_alpha).chunk(2)

    def _precompute(self, batches: RowBatches) -> None:
        """The reference of every row that the run will see, training and held-out, kept in memory by row."""
        wanted = np.unique(np.concatenate([np.asarray(batch, dtype=np.int64) for batch in batches.train]))
        parts: list[tuple[Pairs, npt.NDArray[np.int64]]] = [(batches.train_rows, wanted)]
        if batches.eval_rows is not None:
            parts.append((batches.eval_rows, np.arange(len(batches.eval_rows))))
        of, done = sum(len(numbers) for _, numbers in parts), 0
        self.runtime.emit("phase", f"computing the reference of {of} rows", name="reference", rows=0, of=of)
        with cache_setting(self.model, False):
            for rows, numbers in parts:
                values = {name: np.full(len(rows), np.nan, np.float32) for name in REFERENCE}
                for batch in self._of_similar_length(rows, numbers):
                    inputs = self._prepare_inputs(self.data_collator([rows[row] for row in batch]))
                    for name, one in zip(REFERENCE, self.reference_log_probs(inputs), strict=True):
                        values[name][batch] = one.float().cpu().numpy()
                    done += len(batch)
                    self.runtime.emit("phase", name="reference", rows=done, of=of)
                    if self.runtime.stop.is_set():
                        raise Interrupted(
                            "stopped while the reference was computed; no step was trained in this process",
                            fix="give the same command again",
                        )
                rows.columns |= values

    def _of_similar_length(self, rows: Pairs, numbers: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        """These rows, each once, in batches of at most `train.batch_tokens`."""
        wanted = np.zeros(len(rows), dtype=bool)
        wanted[numbers] = True
        schedule = PairSchedule(rows.examples.where(wanted), batch_tokens=self.runtime.config.train.batch_tokens)
        return (numbers[batch] for batch in schedule)
