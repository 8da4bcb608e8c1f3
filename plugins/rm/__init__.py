"""`rm`: a reward model, which gives an answer one number, learned from pairs of answers (Ouyang et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import TrainingStage
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class RmConfig:
    """Options of `rm`."""

    centering: float = option(
        0.0,
        "Adds this times the square of the sum of a pair's rewards to its loss, which keeps rewards near 0: only their "
        "difference is learned otherwise. 0.01 is usual.",
        ge=0,
    )
    margins: bool = option(
        True,
        "Use the margin of rows that have one (`margin` in the data): by how much the chosen reward must exceed the other.",
    )


def run(runtime: Runtime, config: RmConfig) -> Mapping[str, float]:
    from luthier.plugins.rm.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[RmConfig]]:
    yield TrainingStage(
        name="rm",
        summary="A reward model: a score for an answer, learned from pairs of answers (TRL's RewardTrainer).",
        data_kind="preference",
        task="score",
        config=RmConfig,
        packages=("trl>=1.16",),
        run=run,
        reference="Ouyang et al. 2022, Training language models to follow instructions, section 3.5, arXiv:2203.02155",
    )
