"""`sft`: supervised fine-tuning on conversations: the assistant's turns are learned, the rest is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from luthier.core.contracts import Support, TrainingStage
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import NoOptions
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


def supports(profile: ArchitectureProfile, environment: Environment, config: NoOptions) -> Support:
    """No where transformers' class has a loss of its own instead of `loss_function`, which shifts and weighs by tokens.

    Decoders cut out of encoder-decoder models (Bart, Whisper, ...) and a few old designs compare each token with itself.
    """
    import inspect

    import transformers

    cls = getattr(transformers, profile.architecture, None)
    if profile.remote_code or cls is None or "loss_function(" in inspect.getsource(inspect.unwrap(cls.forward)):
        return Support.yes()
    return Support.no(
        f"transformers' {profile.architecture} has a loss of its own, which is not that of the next token",
        "choose a model that was made to continue text",
    )


def run(runtime: Runtime, config: NoOptions) -> Mapping[str, float]:
    from luthier.plugins.sft.stage import train

    return train(runtime)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[NoOptions]]:
    yield TrainingStage(
        name="sft",
        summary="Supervised fine-tuning on conversations; learns the assistant's turns.",
        data_kind="conversation",
        supports=supports,
        run=run,
        priority=100,
        reference="Ouyang et al. 2022, Training language models to follow instructions, section 3.5, arXiv:2203.02155",
    )
