"""Odds-ratio preference optimisation, from top to bottom.

    rows -> chosen and rejected token ids, labels on the answers        done by the data worker
    lengths -> the run's micro-batches      pairs of similar length together, both sequences within `batch_tokens`
    micro-batches -> optimizer steps        TRL's loss, every row weighs the same

        p(answer)  = exp(mean over its tokens of log p)         odds(answer) = p / (1 - p)
        loss       = NLL(chosen)  -  beta * log sigmoid(log odds(chosen) - log odds(rejected))

The first term is supervised fine-tuning: a model can start here that has not been fine-tuned before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from luthier.core.language_modeling import announce
from luthier.plugins._trl.arguments import trl_arguments
from luthier.plugins._trl.batches import pair_batches
from luthier.plugins._trl.experimental import WithoutReferenceMixin, experimental

with experimental():
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins.orpo import OrpoConfig


def train(runtime: Runtime, config: OrpoConfig) -> dict[str, float]:
    """Run the stage; returns the totals of training, and what was measured on held-out rows."""
    batches = pair_batches(runtime)
    announce(runtime, batches)
    arguments = trl_arguments(
        ORPOConfig,
        runtime,
        batches.train.steps,
        beta=config.beta,
        max_length=runtime.config.data.max_length,  # of no effect on rows that are tokens, and it warns without
    )
    return OrpoTrainer(learn_prompt=config.learn_prompt, runtime=runtime, batches=batches, args=arguments).fit()


class OrpoTrainer(WithoutReferenceMixin, ORPOTrainer):  # type: ignore[misc]
    """TRL's, with the log-probabilities of our model."""

    averaged = True
    told: ClassVar[dict[str, str]] = WithoutReferenceMixin.told | {"log_odds_chosen": "log_odds"}

    def __init__(self, *, learn_prompt: bool, **kwargs: Any) -> None:
        self.learn_prompt = learn_prompt
        super().__init__(**kwargs)
