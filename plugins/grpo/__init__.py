"""`grpo`: group relative policy optimization: answers are compared with others to the same prompt, through TRL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.contracts import Reference, TrainingStage
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.plugins._trl.rollout_options import BETA_DOC, RolloutOptions, supports

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(RolloutOptions):
    """Options of `grpo`."""

    beta: float = option(0.0, BETA_DOC, ge=0)
    loss_type: Literal["dapo", "grpo", "dr_grpo"] = option(
        "dapo",
        "What a token weighs: the same as any other of the rollout (dapo), or of its answer, and each answer the same "
        "(grpo); dr_grpo divides the sum over an answer by max_new_tokens.",
    )
    scale_rewards: Literal["group", "batch", "none"] = option(
        "group",
        "What advantages are divided by: the standard deviation of rewards among a prompt's answers, or in the whole "
        "rollout; or nothing.",
    )
    ratio: Literal["token", "sequence"] = option(
        "token", "The probability ratio is that of each token, or the geometric mean over the answer (GSPO)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_reference(self.beta)


def references(config: GrpoConfig) -> tuple[Reference, ...]:
    return config.ways(config.beta)


def run(runtime: Runtime, config: GrpoConfig) -> Mapping[str, float]:
    from luthier.plugins.grpo.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[GrpoConfig]]:
    yield TrainingStage(
        name="grpo",
        summary="Reinforcement learning from rewards, each answer compared with others to the same prompt (TRL).",
        config=GrpoConfig,
        data_kind="prompt",
        numerics="changes",
        packages=("trl>=1.16",),
        supports=supports,
        references=references,
        run=run,
        example={"reward": [{"use": "length", "max_words": 20}]},
        reference="Shao et al. 2024, DeepSeekMath, section 4, arXiv:2402.03300",
    )
