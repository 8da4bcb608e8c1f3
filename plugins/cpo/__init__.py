"""`cpo` and `simpo`: learning from pairs of answers without a reference.

cpo     log-probabilities of whole answers, and the likelihood of the chosen ones (Xu et al. 2024, arXiv:2401.08417)
simpo   their means by token, and a margin by which the chosen one is to win (Meng et al. 2024, arXiv:2405.14734)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.contracts import Support, TrainingStage
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.language_modeling import predicts_next_token
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class CpoConfig:
    """Options of `cpo`."""

    loss: Literal["sigmoid", "hinge", "ipo"] = option(
        "sigmoid", "The loss of the difference between the two answers: that of the paper, or another of TRL's."
    )
    beta: float = option(0.1, "How much a difference of the log-probabilities is worth.", gt=0)
    label_smoothing: float = option(
        0.0, "The part of the pairs that is the wrong way round, for `loss: sigmoid`.", ge=0, lt=0.5
    )
    likelihood: float = option(
        1.0, "Weight of the mean negative log-likelihood of the chosen answers' tokens beside it.", ge=0
    )

    def __post_init__(self) -> None:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing belongs to loss sigmoid, and loss is {self.loss}")


@dataclass(frozen=True, kw_only=True)
class SimpoConfig:
    """Options of `simpo`."""

    beta: float = option(2.0, "How much a difference of the mean log-probabilities is worth.", gt=0)
    gamma: float = option(
        1.0, "The margin by which beta times that difference is to win; the paper takes half of beta.", ge=0
    )
    label_smoothing: float = option(0.0, "The part of the pairs that is the wrong way round.", ge=0, lt=0.5)
    likelihood: float = option(
        0.0, "Weight of the mean negative log-likelihood of the chosen answers' tokens beside it (CPO-SimPO).", ge=0
    )
    alpha: float = option(
        0.0,
        "Compare (1 - p^-alpha) / alpha of the answers' mean probability p by token, in place of its logarithm (AlphaPO).",
        ge=-2,
        le=2,
    )


def supports(profile: ArchitectureProfile, environment: Environment, config: object) -> Support:
    support = predicts_next_token(profile, environment, config)
    return support and Support.experimental("the trainer is one that TRL calls experimental: a release may change it")


def run_cpo(runtime: Runtime, config: CpoConfig) -> Mapping[str, float]:
    from luthier.plugins.cpo.stage import train

    return train(
        runtime,
        loss_type=config.loss,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        cpo_alpha=config.likelihood,
    )


def run_simpo(runtime: Runtime, config: SimpoConfig) -> Mapping[str, float]:
    from luthier.plugins.cpo.stage import train

    return train(
        runtime,
        loss_type="simpo",
        beta=config.beta,
        simpo_gamma=config.gamma,
        label_smoothing=config.label_smoothing,
        cpo_alpha=config.likelihood,
        alpha=config.alpha,
    )


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[CpoConfig] | TrainingStage[SimpoConfig]]:
    yield TrainingStage(
        name="cpo",
        summary="Learns from pairs of answers without a reference, and to give the chosen ones (TRL's CPOTrainer).",
        data_kind="preference",
        config=CpoConfig,
        packages=("trl>=1.16",),
        supports=supports,
        run=run_cpo,
        reference="Xu et al. 2024, Contrastive Preference Optimization, arXiv:2401.08417",
    )
    yield TrainingStage(
        name="simpo",
        summary="Learns from pairs of answers by their mean log-probabilities, without a reference (TRL's CPOTrainer).",
        data_kind="preference",
        config=SimpoConfig,
        packages=("trl>=1.16",),
        supports=supports,
        run=run_simpo,
        reference="Meng et al. 2024, SimPO: Simple Preference Optimization with a Reference-Free Reward, arXiv:2405.14734",
    )
