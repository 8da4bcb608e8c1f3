"""Reward modelling, from top to bottom.

    rows -> chosen and rejected token ids    done by the data worker; each row is cut after its answer's last token
    lengths -> the run's micro-batches       pairs of similar length together, both sequences within `batch_tokens`
    score(prompt, answer)                    the head's number at the answer's last token that is no padding
    micro-batches -> optimizer steps         TRL's loss, every pair of a step weighs the same

        loss = -log sigmoid(score(chosen) - score(rejected) - margin) + centering * (score(chosen) + score(rejected))^2

Beside the held-out accuracy stands that of always choosing the longer answer: a model that is not above it has learned to
count tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from luthier.core.data.examples import IGNORED, Example, Examples
from luthier.core.language_modeling import announce
from luthier.plugins._trl.arguments import trl_arguments
from luthier.plugins._trl.batches import RowBatches, collate_pairs, pair_batches
from luthier.plugins._trl.trainer import TrlMixin

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.runtime import Runtime
    from luthier.plugins.rm import RmConfig

# What the model is called with; the rest of a batch is for the loss, or for counting.
INPUTS: Final = ("input_ids", "attention_mask", "use_cache")


def train(runtime: Runtime, config: RmConfig) -> dict[str, float]:
    """Run the stage; returns the totals of training, and of the held-out pairs loss, accuracy, margin and the baseline."""
    batches = pair_batches(runtime, margins=config.margins)
    announce(runtime, batches)
    _tell_margins(runtime, config)
    return RmTrainer(runtime, batches, config).fit()


class RmTrainer(TrlMixin, RewardTrainer):  # type: ignore[misc]
    """TRL's, on a model with a score head."""

    reported: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy", "margin": "margin", "mean_reward": "reward"}

    def __init__(self, runtime: Runtime, batches: RowBatches, config: RmConfig) -> None:
        arguments = trl_arguments(
            RewardConfig, runtime, batches.train.steps, center_rewards_coefficient=config.centering or None
        )
        super().__init__(runtime=runtime, batches=batches, args=arguments)
        assert runtime.tokenizer is not None
        self.data_collator = partial(collate_answers, pad_token_id=runtime.tokenizer.pad_token_id)
        self.longer = longer_is_better(batches.eval_rows.examples) if batches.eval_rows is not None else None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss of a micro-batch of 2B sequences; see `TrlMixin`. TRL calls the model with all that a batch holds."""

        def score(**batch: Any) -> Any:
            return model(**{name: batch[name] for name in INPUTS})

        return super().compute_loss(score, inputs, *args, **kwargs)

    def measured(self, mode: str) -> dict[str, float]:
        """As in `TrlMixin`; of held-out rows also the accuracy of choosing the longer answer."""
        means = super().measured(mode)
        return means | {"accuracy_longer": self.longer} if mode == "eval" and self.longer is not None else means


def collate_answers(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """`collate_pairs` of the rows up to the last token of each answer: what the template writes after is no part of it."""
    cut = [{**row, "chosen": up_to_the_end(row["chosen"]), "rejected": up_to_the_end(row["rejected"])} for row in rows]
    return collate_pairs(cut, pad_token_id)


def up_to_the_end(example: Example) -> Example:
    """The tokens up to the last one of the answer, its end token where it has one."""
    end = int(np.flatnonzero(example["labels"] != IGNORED)[-1]) + 1
    return {"input_ids": example["input_ids"][:end], "labels": example["labels"][:end]}


def longer_is_better(pairs: Examples) -> float:
    """The part of the pairs whose chosen answer has more tokens than the rejected one; equal lengths count half."""
    answers = np.array([np.count_nonzero(example["labels"] != IGNORED) for example in pairs]).reshape(-1, 2)
    return float((0.5 + 0.5 * np.sign(answers[:, 0] - answers[:, 1])).mean())


def _tell_margins(runtime: Runtime, config: RmConfig) -> None:
    assert runtime.data is not None
    rows = runtime.data.train.rows
    given = int(np.count_nonzero(~np.isnan(runtime.data.train.values)))
    if not given:
        return
    if config.margins:
        runtime.notice(f"{given:,} of {rows:,} pairs have a margin; the others are learned without one")
    else:
        runtime.notice(f"{given:,} of {rows:,} pairs have a margin, which `margins: false` leaves out")
