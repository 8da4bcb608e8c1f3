"""`pt`: continued pre-training on plain text: every token is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.best import EarlyStopping, comparing_needs
from luthier.core.contracts import Declaration, TrainingStage
from luthier.core.hookspecs import hookimpl
from luthier.core.language_modeling import predicts_next_token
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class PtConfig(EarlyStopping):
    """Options of `pt`."""

    keep_best: Literal["loss"] | None = option(
        None,
        "Save the weights of the evaluation with the lowest held-out loss, not those of the last step. Needs "
        "`train.eval_every`.",
    )


def declares(profile: ArchitectureProfile, config: PtConfig) -> Declaration:
    return comparing_needs(config.keep_best, config.early_stopping)


def run(runtime: Runtime, config: PtConfig) -> Mapping[str, float]:
    from luthier.plugins.pt.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[PtConfig]]:
    yield TrainingStage(
        name="pt",
        summary="Continued pre-training on plain text; learns every token.",
        config=PtConfig,
        data_kind="text",
        provides=frozenset({"stage.packs", "stage.streams"}),
        declares=declares,
        supports=predicts_next_token,
        run=run,
        priority=90,
        reference="Gururangan et al. 2020, Don't Stop Pretraining, arXiv:2004.10964",
    )
