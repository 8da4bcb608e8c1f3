"""Preferences without a reference, from top to bottom: `cpo`, and `simpo` as the same trainer with another loss.

    rows -> chosen and rejected token ids, labels on the answers        done by the data worker
    lengths -> the run's micro-batches      pairs of similar length together, both sequences within `batch_tokens`
    micro-batches -> optimizer steps        TRL's loss, every row weighs the same

        cpo      reward(answer) = beta * sum over its tokens of log p
                 loss           = -log sigmoid(reward(chosen) - reward(rejected))  +  likelihood * NLL(chosen)
        simpo    reward(answer) = beta * mean over its tokens of log p
                 loss           = -log sigmoid(reward(chosen) - reward(rejected) - gamma)

What is measured on the held-out rows is told by the same rewards: how often the chosen answer has the higher one, and by how
much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from luthier.core.language_modeling import announce
from luthier.plugins._trl.arguments import trl_arguments
from luthier.plugins._trl.batches import pair_batches
from luthier.plugins._trl.experimental import WithoutReferenceMixin, experimental

with experimental():
    from trl.experimental.cpo import CPOConfig, CPOTrainer

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime

AVERAGED: Final = ("ipo", "simpo")


def train(runtime: Runtime, **options: Any) -> dict[str, float]:
    """Run the stage with these options of TRL's CPOConfig; returns the totals, and what was measured on held-out rows."""
    batches = pair_batches(runtime)
    announce(runtime, batches)
    arguments = trl_arguments(
        CPOConfig,
        runtime,
        batches.train.steps,
        max_length=runtime.config.data.max_length,  # of no effect on rows that are tokens, and it warns without
        **options,
    )
    return CpoTrainer(runtime=runtime, batches=batches, args=arguments).fit()


class CpoTrainer(WithoutReferenceMixin, CPOTrainer):  # type: ignore[misc]
    """TRL's, with the log-probabilities of our model."""

    def __init__(self, **kwargs: Any) -> None:
        self.likelihood = kwargs["args"].cpo_alpha > 0
        self.averaged = kwargs["args"].loss_type in AVERAGED
        super().__init__(**kwargs)
