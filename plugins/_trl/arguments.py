"""TRL's configuration objects for a run whose plan has decided everything already."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final, TypeVar

from luthier.core.trainer_settings import training_options

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from luthier.core.runtime import Runtime

A = TypeVar("A", bound="TrainingArguments")

# On by default in TRL. Checkpointing is a patch of ours, lengths are the data worker's, and dropout is what model and
# adapter say.
OFF: Final[dict[str, Any]] = {
    "gradient_checkpointing": None,  # a name that newer releases of transformers warn of, whatever it says
    "max_length": None,
    "disable_dropout": False,
    "pad_to_multiple_of": None,
}


def trl_arguments(kind: type[A], runtime: Runtime, steps: int, **options: Any) -> A:
    """`kind`, for example `trl.DPOConfig`, for a run of `steps` optimizer steps; `options` are those of its loss.

    Raises TypeError for an option that this version of TRL does not know.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    off = {name: value for name, value in OFF.items() if name in known}
    arguments = kind(**(training_options(runtime, steps=steps) | off | options))
    if arguments.n_gpu > 1:
        # One process trains on one device: DataParallel would split each batch over all visible GPUs.
        arguments._n_gpu = 1
    return arguments
