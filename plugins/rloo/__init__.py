"""`rloo`: REINFORCE with a leave-one-out baseline: what to expect is what the other answers to a prompt got, through TRL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import Reference, TrainingStage
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.plugins._trl.rollout_options import BETA_DOC, RolloutOptions, supports

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class RlooConfig(RolloutOptions):
    """Options of `rloo`."""

    beta: float = option(0.05, BETA_DOC + " It is taken off the reward.", ge=0)
    normalize_advantages: bool = option(False, "Advantages of a rollout are brought to mean 0 and standard deviation 1.")
    reward_clip: float | None = option(None, "Rewards beyond this, above and below 0, are cut to it.", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_reference(self.beta)


def references(config: RlooConfig) -> tuple[Reference, ...]:
    return config.ways(config.beta)


def run(runtime: Runtime, config: RlooConfig) -> Mapping[str, float]:
    from luthier.plugins.rloo.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[RlooConfig]]:
    yield TrainingStage(
        name="rloo",
        summary="REINFORCE with the other answers to a prompt as its baseline, and rewards less the KL divergence (TRL).",
        config=RlooConfig,
        data_kind="prompt",
        numerics="changes",
        packages=("trl>=1.16",),
        supports=supports,
        references=references,
        run=run,
        example={"reward": [{"use": "length", "max_words": 20}]},
        reference="Ahmadian et al. 2024, Back to Basics: Revisiting REINFORCE-Style Optimization, arXiv:2402.14740",
    )
