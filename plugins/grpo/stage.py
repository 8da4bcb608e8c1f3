"""GRPO, from top to bottom.

    a prompt -> num_generations answers -> their rewards r
    advantage of an answer   A = (r - mean(r)) / (std(r) + 1e-4), over the answers to its prompt
    loss of a token          -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A) + beta * KL(policy || reference)

with ratio = new probability / probability when the answer was made, and KL estimated as exp(d) - d - 1 of the difference d
of reference and policy in log-probability (Schulman, http://joschu.net/blog/kl-approx.html). Advantages and loss are
those of `trl.GRPOTrainer`; generation, rewards, log-probabilities and reference are ours (plugins/_trl/rollout.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from luthier.plugins._trl.rollout import RolloutMixin
from luthier.plugins._trl.rollout_stage import rollout_trainer

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins.grpo import GrpoConfig


class GrpoTrainer(RolloutMixin, GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer on the run's model, prompts and rewards."""

    def _generate(self, prompts: Sequence[int]) -> tuple[Any, ...]:
        """As TRL's: prompt and answer tokens, no tools, texts, nothing about sampling, extra columns or images."""
        prompt_ids, answer_ids, texts = self.answers(prompts)
        return prompt_ids, answer_ids, None, texts, None, {}, None, []


def train(runtime: Runtime, config: GrpoConfig) -> dict[str, float]:
    """Run the stage; returns the totals of training, and the mean reward of held-out prompts where there are any."""
    trainer: GrpoTrainer = rollout_trainer(
        GrpoTrainer,
        GRPOConfig,
        runtime,
        config,
        beta=config.beta,
        loss_type=config.loss_type,
        scale_rewards=config.scale_rewards,
        importance_sampling_level=config.ratio,
    )
    return trainer.fit()
