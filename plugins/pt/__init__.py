"""`pt`: continued pre-training on plain text: every token is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from luthier.core.contracts import TrainingStage
from luthier.core.hookspecs import hookimpl
from luthier.core.language_modeling import predicts_next_token
from luthier.core.options import NoOptions

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


def run(runtime: Runtime, config: NoOptions) -> Mapping[str, float]:
    from luthier.plugins.pt.stage import train

    return train(runtime)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[NoOptions]]:
    yield TrainingStage(
        name="pt",
        summary="Continued pre-training on plain text; learns every token.",
        data_kind="text",
        provides=frozenset({"stage.packs", "stage.streams"}),
        supports=predicts_next_token,
        run=run,
        priority=90,
        reference="Gururangan et al. 2020, Don't Stop Pretraining, arXiv:2004.10964",
    )
