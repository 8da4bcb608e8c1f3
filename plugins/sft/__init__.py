"""`sft`: supervised fine-tuning on conversations: the assistant's turns are learned, the rest is read."""

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
    from luthier.plugins.sft.stage import train

    return train(runtime)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[NoOptions]]:
    yield TrainingStage(
        name="sft",
        summary="Supervised fine-tuning on conversations; learns the assistant's turns.",
        data_kind="conversation",
        provides=frozenset({"stage.packs", "stage.streams"}),
        supports=predicts_next_token,
        run=run,
        priority=100,
        reference="Ouyang et al. 2022, Training language models to follow instructions, section 3.5, arXiv:2203.02155",
    )
