"""The options that `grpo` and `rloo` share: several answers to each prompt, judged by a reward, and the updates from them.

Light to import: a plan asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.config.schema import Choice
from luthier.core.contracts import Reference, Support
from luthier.core.environment import Environment
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.rewards.config import REWARD_DOC, check_rewards, support_rewards

EPSILON: Final = 0.2
WAYS: Final[tuple[Reference, ...]] = ("disabled", "copied", "model")
BETA_DOC: Final = "Weight of the KL divergence from the reference model, the policy as training found it; 0 for none."


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Without `beta`, whose default is another in each method."""

    reward: tuple[Choice, ...] = option(doc=REWARD_DOC)
    num_generations: int = option(8, "Answers to each prompt; they are compared with one another.", ge=2)
    prompts_per_step: int = option(
        8,
        "Prompts of an optimizer step, each with `num_generations` answers; as many micro-batches as `train.batch_tokens` "
        "asks for.",
        ge=1,
    )
    max_new_tokens: int = option(256, "Tokens after which an answer is cut, whether it has ended or not.", ge=1)
    temperature: float = option(1.0, "Of sampling; also divides the logits in the loss.", gt=0)
    top_p: float = option(1.0, "Only the likeliest tokens that make up this share are drawn.", gt=0, le=1)
    top_k: int = option(0, "Only so many of the likeliest tokens are drawn; 0 for all.", ge=0)
    steps_per_generation: int = option(
        1, "Optimizer steps whose prompts are answered at once, by the policy as it is before the first of them.", ge=1
    )
    num_iterations: int = option(1, "How often each answer is learned from before new ones are generated.", ge=1)
    epsilon: float = option(
        EPSILON, "How far the ratio of new to old probability counts, below and above 1; beyond it is clipped.", gt=0, lt=1
    )
    epsilon_high: float | None = option(None, "Another bound above 1; null for `epsilon` (DAPO takes 0.28).", gt=0)
    mask_truncated: bool = option(False, "Answers that were cut teach nothing (their reward still counts in the baseline).")
    reference: Literal["auto", "disabled", "copied", "model"] = option(
        "auto",
        "Where the reference comes from: the adapter off, a frozen copy of it, or of the whole model; `auto` for the first "
        "that the adapter allows.",
    )

    def __post_init__(self) -> None:
        check_rewards(self.reward)
        clips = self.num_iterations > 1 or self.steps_per_generation > 1
        if not clips and (self.epsilon != EPSILON or self.epsilon_high is not None):
            raise ValueError(
                "epsilon and epsilon_high have no effect: with num_iterations 1 and steps_per_generation 1 each answer is "
                "learned from by the policy that gave it, and the ratio is 1"
            )

    def check_reference(self, beta: float) -> None:
        """Raises ValueError for a `reference` that nothing would be compared with."""
        if self.reference != "auto" and not beta:
            raise ValueError(f"reference: {self.reference} has no effect with beta 0, which needs no reference model")

    def ways(self, beta: float) -> tuple[Reference, ...]:
        """How the reference can be had, best first; none without a KL term."""
        if not beta:
            return ()
        return WAYS if self.reference == "auto" else (self.reference,)


def supports(profile: ArchitectureProfile, environment: Environment, config: RolloutOptions) -> Support:
    """No where a reward's file or folder is missing, or answers cannot fit into the model's context."""
    context = profile.context_length
    if context is not None and config.max_new_tokens >= context:
        return Support.no(
            f"answers of {config.max_new_tokens} tokens leave no room for a prompt: the model reads {context}",
            "lower max_new_tokens",
        )
    return support_rewards(config.reward)
