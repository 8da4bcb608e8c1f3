"""Kahneman-Tversky optimisation, from top to bottom.

    rows -> token ids, labels on the answer, good or bad      done by the data worker
    lengths -> the run's micro-batches      rows of similar length together, within `batch_tokens`
    reference                               log-probabilities of the answers under the model as training found it
    step -> divergence                      how far the policy is from the reference on other rows' answers
    micro-batches -> optimizer steps        TRL's loss, every row weighs the same

        r(answer)  = log p(answer | prompt) - log p_reference(answer | prompt)
        z          = max(0, mean over a step's rows of r(another row's answer))        no gradient
        loss       = desirable_weight   * (1 - sigmoid(beta * (r - z)))      of a good answer
                     undesirable_weight * (1 - sigmoid(beta * (z - r)))      of a bad one

TRL estimates z in each micro-batch; here it is one for all rows of an optimizer step, the batch of the paper, and one for
all held-out rows. The reference is given to TRL as if it had been precomputed: TRL never switches an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from luthier.core.data import BatchSchedule, Example, collate
from luthier.core.data.examples import IGNORED
from luthier.core.errors import DataError, Interrupted
from luthier.core.generation import evaluating
from luthier.core.language_modeling import announce
from luthier.core.references import WORDS, ReferencePolicy
from luthier.core.trainer_settings import cache_setting
from luthier.plugins._trl.arguments import trl_arguments
from luthier.plugins._trl.batches import RowBatches
from luthier.plugins._trl.scoring import TokenScorer
from luthier.plugins._trl.trainer import TrlMixin, stand_in
from luthier.plugins.kto.rated import Rated, rated_batches

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins.kto import KtoConfig

# The paper's equation 8: all good answers together weigh this much more than all bad ones.
RECOMMENDED: Final = (1.0, 4 / 3)
# TRL's names of means over good and over bad rows, and what they are called here.
BY_RATING: Final = (
    ("rewards/chosen", "reward_desirable", 0),
    ("rewards/rejected", "reward_undesirable", 1),
    ("logps/chosen", "logp_desirable", 0),
    ("logps/rejected", "logp_undesirable", 1),
)


def train(runtime: Runtime, config: KtoConfig) -> dict[str, float]:
    """Run the stage; returns the totals of training, and loss, accuracy and margin of the held-out rows."""
    batches = rated_batches(runtime)
    check_ratings(runtime, batches.train_rows, config)
    announce(runtime, batches)
    return KtoTrainer(runtime, batches, config).fit()


def check_ratings(runtime: Runtime, rows: Rated, config: KtoConfig) -> None:
    """Refuse rows that are all good or all bad; warn where one kind weighs much more than the other."""
    good = int(rows.good.sum())
    bad = len(rows) - good
    if not good or not bad:
        raise DataError(
            f"all {len(rows)} rows to train on are rated {'good' if good else 'bad'}: kto learns from the difference",
            where="data.train",
            fix="give rows of both kinds, or learn good answers alone with `stage: sft`",
        )
    least, most = RECOMMENDED
    ratio = config.desirable_weight * good / (config.undesirable_weight * bad)
    if not least - 1e-6 <= ratio <= most + 1e-6:
        weight = config.undesirable_weight * bad / good
        runtime.emit(
            "warning",
            f"{good} good and {bad} bad rows, weighted, stand at {ratio:.3g} to 1, and the paper recommends 1 to 4/3: "
            f"for example desirable_weight: {weight:.3g}",
        )


class KtoTrainer(TrlMixin, KTOTrainer):  # type: ignore[misc]
    """TRL's, with the reference that the plan names and one estimate of the divergence for a step."""

    sequences_per_row: ClassVar[int] = 1
    # Before the first step policy and reference are the same: every reward is 0.
    evaluate_first: ClassVar[bool] = False

    def __init__(self, runtime: Runtime, batches: RowBatches, config: KtoConfig) -> None:
        how: Any = runtime.plan.step("stage").reference
        runtime.notice(f"reference: {WORDS[how]}")
        # Before a checkpoint is loaded, and before anything trains.
        model: Any = runtime.model
        self.reference = ReferencePolicy(model, how)
        self._ratings: dict[str, list[tuple[int, int, int]]] = {"train": [], "eval": []}  # good, bad, on their side
        self._divergence = {"train": 0.0, "eval": 0.0}
        self._of_reference: dict[str, list[float]] | None = None  # by step, where it is computed beforehand
        self._said_cut = False
        arguments = trl_arguments(
            KTOConfig,
            runtime,
            batches.train.steps,
            loss_type=config.loss,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
            per_device_train_batch_size=2,  # not what a batch has, and TRL refuses 1
            # As in every stage: what balances the experts is part of the loss where the model's configuration says so.
            router_aux_loss_coef=None if getattr(model.config, "output_router_logits", False) else 0.0,
        )
        super().__init__(runtime=runtime, batches=batches, args=arguments, ref_model=stand_in(model))
        # From here on TRL takes the reference from the batches.
        self.ref_model, self.precompute_ref_logps = None, True
        if how == "precomputed":
            self._precompute(batches)

    # ---- the loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, once the divergence over all of them is estimated."""
        batches, rows = super().get_batch_samples(*args, **kwargs)
        if self.calculate_KL and batches:
            numbers = [row for batch in batches for row in batch["row"].tolist()]
            self._divergence["train"] = self._estimate(self.train_dataset, numbers, "train", self.state.global_step)
        return batches, rows

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> Any:
        """TRL's loss of a micro-batch of B sequences; see `TrlMixin`."""
        inputs = {name: value for name, value in inputs.items() if name != "row"}
        if "ref_logps" not in inputs:
            with self.reference() as frozen:
                inputs["ref_logps"] = self._answer_log_probs(frozen, inputs)
        inputs["ref_KL_logps"] = inputs["ref_logps"].new_zeros(1)
        policy = TokenScorer(model)
        loss = super().compute_loss(policy, inputs, return_outputs, num_items_in_batch)
        good, mode = inputs["label"], self._mode
        moved = policy.last.log_probs.detach().sum(1) - inputs["ref_logps"]
        side = (moved > max(self._divergence[mode], 0.0)) == good
        self._ratings[mode].append((int(good.sum()), int((~good).sum()), int(side.sum())))
        return loss

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Tensor | None:
        """What TRL subtracts the reference's from, which is given as 0: the estimate for the whole step."""
        if not self.calculate_KL:
            return None
        return batch["ref_KL_logps"].new_tensor([self._divergence[self._mode]])

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    # ---- the divergence

    def _estimate(self, rows: Rated, numbers: Sequence[int], mode: str, step: int) -> float:
        """Mean of r over the prompts of these rows with each other's answers, in nats."""
        sequences = self._mismatched(rows, numbers)
        with evaluating(self.model):
            policy = self._mean_log_prob(self.model, sequences)
        if self._of_reference is not None:
            return policy - self._of_reference[mode][step]
        with self.reference() as frozen:
            return policy - self._mean_log_prob(frozen, sequences)

    def _mismatched(self, rows: Rated, numbers: Sequence[int]) -> list[Example]:
        longest = self.runtime.config.data.max_length
        sequences, cut = rows.mismatched(numbers, longest)
        if cut and not self._said_cut:
            self._said_cut = True
            self.runtime.notice(
                f"kto: prompts with another row's answer that are longer than data.max_length ({longest}) lose its end; "
                "they serve the estimate of the divergence alone"
            )
        return sequences

    def _mean_log_prob(self, model: Any, sequences: Sequence[Example]) -> float:
        """Mean over sequences of the log-probability of their answers."""
        assert self.runtime.tokenizer is not None
        pad_token_id: Any = self.runtime.tokenizer.pad_token_id
        lengths = [len(sequence["input_ids"]) for sequence in sequences]
        total = 0.0
        for batch in BatchSchedule(lengths, batch_tokens=self.runtime.config.train.batch_tokens):
            inputs = collate([sequences[place] for place in batch], pad_token_id)
            inputs["completion_mask"] = (inputs.pop("labels") != IGNORED).long()
            total += float(self._answer_log_probs(model, self._prepare_inputs(inputs)).double().sum())
        return total / len(sequences)

    def _answer_log_probs(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Of the answers of a batch, float32 (B,), without gradients."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        with torch.no_grad(), self.accelerator.autocast():
            scores = TokenScorer(model)(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, labels=labels
            )
        found: Tensor = scores.log_probs.sum(1)
        return found

    # ---- what is told

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As TrlMixin's, with one estimate of the divergence for all held-out rows."""
        if self.calculate_KL:
            numbers = range(len(self.eval_dataset))
            with cache_setting(self.model, False):
                self._divergence["eval"] = self._estimate(self.eval_dataset, numbers, "eval", 0)
        return super().evaluate(*args, **kwargs)

    @property
    def reported(self) -> dict[str, str]:  # type: ignore[override]
        """TRL's means over the rows of a batch; those over the good or the bad ones are in `measured`."""
        return {"kl": "kl"} if self.calculate_KL else {}

    def measured(self, mode: str) -> dict[str, float]:
        """As TrlMixin's, and the means over good and over bad rows.

        `accuracy` is the part of the rows that have moved to their side of z, good ones above it and bad ones not;
        `margin` the mean reward of the good less that of the bad, where there are both.
        """
        kept, counts = self._metrics[mode], list(self._ratings[mode])
        self._ratings[mode].clear()
        means: dict[str, float] = {}
        for theirs, ours, which in BY_RATING:
            weights = [count[which] for count in counts if count[which]]
            values = [float(value) for value in kept.get(theirs, ())]
            if weights:
                means[ours] = float(np.average(values, weights=weights))
        if "reward_desirable" in means and "reward_undesirable" in means:
            means["margin"] = means["reward_desirable"] - means["reward_undesirable"]
        if counts:
            means["accuracy"] = sum(right for _, _, right in counts) / sum(good + bad for good, bad, _ in counts)
        return super().measured(mode) | means

    # ---- the reference, computed beforehand

    def _precompute(self, batches: RowBatches) -> None:
        """The reference of every row that the run will see, and of every mismatched answer of every step."""
        steps = self._steps([*batches.train])
        parts: list[tuple[Rated, list[int]]] = [(batches.train_rows, sorted({row for step in steps for row in step}))]
        mismatched = [("train", batches.train_rows, step) for step in steps]
        if batches.eval_rows is not None:
            parts.append((batches.eval_rows, list(range(len(batches.eval_rows)))))
            mismatched.append(("eval", *parts[-1]))
        if not self.calculate_KL:
            mismatched = []
        of = sum(len(numbers) for _, numbers in parts) + sum(len(numbers) for _, _, numbers in mismatched)
        self.runtime.emit("phase", f"computing the reference of {of} answers", name="reference", rows=0, of=of)
        self._done = 0
        self._of_reference = {"train": [], "eval": []}
        with cache_setting(self.model, False), self.reference() as frozen:
            for rows, numbers in parts:
                values = np.full(len(rows), np.nan, np.float32)
                for batch in self._of_similar_length(rows, numbers):
                    inputs = self._prepare_inputs(self.data_collator([rows[row] for row in batch]))
                    values[batch] = self._answer_log_probs(frozen, inputs).cpu().numpy()
                    self._tell(len(batch), of)
                rows.columns["ref_logps"] = values
            for mode, rows, numbers in mismatched:
                self._of_reference[mode].append(self._mean_log_prob(frozen, self._mismatched(rows, numbers)))
                self._tell(len(numbers), of)

    def _tell(self, rows: int, of: int) -> None:
        self._done += rows
        self.runtime.emit("phase", name="reference", rows=self._done, of=of)
        if self.runtime.stop.is_set():
            raise Interrupted(
                "stopped while the reference was computed; no step was trained in this process",
                fix="give the same command again",
            )

    def _steps(self, batches: Sequence[Any]) -> list[list[int]]:
        """The rows of each optimizer step, in the order of its micro-batches."""
        size = self.runtime.config.train.accumulation
        return [[row for batch in batches[at : at + size] for row in batch] for at in range(0, len(batches), size)]

    def _of_similar_length(self, rows: Rated, numbers: Sequence[int]) -> Iterator[list[int]]:
        """These rows, each once, in batches of at most `train.batch_tokens`."""
        lengths = rows.examples.lengths[list(numbers)]
        for batch in BatchSchedule(lengths, batch_tokens=self.runtime.config.train.batch_tokens):
            yield [numbers[place] for place in batch]
