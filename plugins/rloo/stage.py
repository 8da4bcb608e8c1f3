"""RLOO, from top to bottom.

    a prompt -> num_generations answers -> their rewards, less beta times the KL divergence of each from the reference: r
    advantage of an answer   A = r - mean of the other answers' r
    loss of an answer        -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A)

with ratio = new probability of the whole answer / its probability when it was made, and the KL divergence of an answer the
sum over its tokens of the difference of policy and reference in log-probability. Advantages and loss are those of
`trl.RLOOTrainer`; generation, rewards, log-probabilities and reference are ours (plugins/_trl/rollout.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from luthier.plugins._trl.rollout import RolloutMixin
from luthier.plugins._trl.rollout_stage import rollout_trainer

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins.rloo import RlooConfig


class RlooTrainer(RolloutMixin, RLOOTrainer):  # type: ignore[misc]
    """TRL's trainer on the run's model, prompts and rewards."""

    def _generate(self, prompts: Sequence[int]) -> tuple[Any, ...]:
        """As TRL's: prompt tokens, answer tokens and texts."""
        return self.answers(prompts)


def train(runtime: Runtime, config: RlooConfig) -> dict[str, float]:
    """Run the stage; returns the totals of training, and the mean reward of held-out prompts where there are any."""
    clip = config.reward_clip
    trainer: RlooTrainer = rollout_trainer(
        RlooTrainer,
        RLOOConfig,
        runtime,
        config,
        beta=config.beta,
        normalize_advantages=config.normalize_advantages,
        reward_clip_range=None if clip is None else (-clip, clip),
    )
    return trainer.fit()
