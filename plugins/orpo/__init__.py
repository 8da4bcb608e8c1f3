"""`orpo`: learning the chosen answers, and at better odds than the rejected ones (Hong et al. 2024, arXiv:2403.07691)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import Support, TrainingStage
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.language_modeling import predicts_next_token
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class OrpoConfig:
    """Options of `orpo`."""

    beta: float = option(
        0.1, "Weight of the odds beside the likelihood of the chosen answers; the paper calls it lambda.", gt=0
    )
    learn_prompt: bool = option(
        True, "Whether the likelihood is that of prompt and chosen answer, as TRL has it, or of the answer alone."
    )


def supports(profile: ArchitectureProfile, environment: Environment, config: OrpoConfig) -> Support:
    support = predicts_next_token(profile, environment, config)
    return support and Support.experimental("the trainer is one that TRL calls experimental: a release may change it")


def run(runtime: Runtime, config: OrpoConfig) -> Mapping[str, float]:
    from luthier.plugins.orpo.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[OrpoConfig]]:
    yield TrainingStage(
        name="orpo",
        summary="Supervised fine-tuning and preferences in one stage, without a reference (TRL's ORPOTrainer).",
        data_kind="preference",
        config=OrpoConfig,
        packages=("trl>=1.16",),
        supports=supports,
        run=run,
        reference="Hong et al. 2024, ORPO: Monolithic Preference Optimization without Reference Model, arXiv:2403.07691",
    )
