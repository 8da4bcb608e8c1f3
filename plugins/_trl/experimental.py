"""TRL's trainers of preferences without a reference (CPO with SimPO, ORPO), which it keeps under `trl.experimental`.

    loss of a step = mean over its rows of the preference term  +  weight * mean over its tokens of -log p(chosen)

The second mean is over the learned tokens of all chosen answers of an optimizer step. TRL takes it over those of a
micro-batch; here it does not depend on how a step is split.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from trl.import_utils import TRLExperimentalWarning

from luthier.core.data.examples import IGNORED
from luthier.plugins._trl.scoring import TokenScorer
from luthier.plugins._trl.trainer import PAIR_METRICS, TrlMixin

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins._trl.batches import RowBatches


@contextmanager
def experimental() -> Iterator[None]:
    """Imports within the block are of `trl.experimental`, which warns of that by itself: the plan has said so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TRLExperimentalWarning)
        yield


class WithoutReferenceMixin(TrlMixin):
    """Before TRL's `CPOTrainer` or `ORPOTrainer`.

    likelihood    whether the loss has the second term; without it nothing is told of it
    learn_prompt  whether that is over prompt and answer, or over the answer alone
    averaged      whether answers are compared by the mean over their tokens, or by the sum
    """

    likelihood: bool = True
    learn_prompt: bool = False
    averaged: bool = False
    told: ClassVar[dict[str, str]] = PAIR_METRICS | {"nll_loss": "nll"}

    _stored_metrics: Any

    def __init__(self, *, runtime: Runtime, batches: RowBatches, args: Any) -> None:
        super().__init__(runtime=runtime, batches=batches, args=args)
        self._tokens_per_row = {"train": 1.0, "eval": self._of_held_out()}

    @property
    def reported(self) -> Mapping[str, str]:  # type: ignore[override]
        """The likelihood of the chosen answers is told where it is a part of the loss."""
        return self.told if self.likelihood else PAIR_METRICS

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, and how many tokens the chosen answers of a row have in it on average."""
        batches, rows = super().get_batch_samples(*args, **kwargs)
        tokens = sum(int(self._likely(batch)[: self.count_rows(batch), 1:].sum()) for batch in batches)
        self._tokens_per_row["train"] = tokens / max(sum(self.count_rows(batch) for batch in batches), 1)
        return batches, rows

    def trained_tokens(self, inputs: Mapping[str, Any]) -> Any:
        """The answers' tokens, and those of the prompts that are learned with them."""
        return self._likely(inputs)[:, 1:].sum()

    def concatenated_forward(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What TRL's losses are computed from, for a batch of 2B sequences: the chosen answers, then the rejected.

        The log-probabilities of both, float32 (B,) each; in place of two means of logits, which are not told, zeros; the
        likelihood term; and the balancing loss of the experts, where the model has one.
        """
        rows, mask = self.count_rows(batch), batch["completion_mask"]
        scores = TokenScorer(model)(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
            labels=batch["input_ids"].masked_fill(self._likely(batch) == 0, IGNORED),
        )
        answers = mask[:, 1:]
        log_probs = (scores.log_probs * answers).sum(1)
        if self.averaged:
            log_probs = log_probs / answers.sum(1)
        nothing = log_probs.new_zeros(())
        likelihood = nothing
        if self.likelihood:
            per_row = self._tokens_per_row["train" if self.model.training else "eval"]
            likelihood = -scores.log_probs[:rows].sum() / (rows * per_row)
        balance = (scores.aux_loss,) if scores.aux_loss is not None else ()
        return (*log_probs.chunk(2), nothing, nothing, likelihood, *balance)

    def store_metrics(self, metrics: Mapping[str, float], train_eval: str = "train") -> None:
        """By what the model is doing: TRL takes every call of `compute_loss` for a training step."""
        mode = "train" if self.model.training else "eval"
        for name, value in metrics.items():
            self._stored_metrics[mode][name].append(value)

    def _likely(self, batch: Mapping[str, Tensor]) -> Tensor:
        """1 where a token is scored, (2B, T): the answers, and with `learn_prompt` whatever is before the chosen ones."""
        mask = batch["completion_mask"]
        if not self.learn_prompt:
            return mask
        chosen, rejected = mask.chunk(2)
        # Not what the template writes after an answer, which nobody learns.
        until_the_end = (chosen.flip(1).cumsum(1).flip(1) > 0).long()
        return torch.cat([until_the_end, rejected])

    def _of_held_out(self) -> float:
        """Tokens that the likelihood term counts, by held-out row."""
        if self.eval_dataset is None:
            return 1.0
        tokens = 0
        for row in range(len(self.eval_dataset)):
            (learned,) = (self.eval_dataset[row]["chosen"]["labels"][1:] != IGNORED).nonzero()
            tokens += int(learned[-1]) + 1 if self.learn_prompt else len(learned)
        return tokens / len(self.eval_dataset)
