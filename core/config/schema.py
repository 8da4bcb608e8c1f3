"""The keys of a configuration file. Each field documents itself; docs/config.md is generated from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from luthier.core.frozen import FrozenDict
from luthier.core.options import option

AUTO: Final = "auto"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a slot says: a name and the options written beside it. `use: auto` leaves the choice to the plan."""

    use: str = AUTO
    options: FrozenDict[str, Any] = field(default_factory=FrozenDict)

    @property
    def is_auto(self) -> bool:
        return self.use == AUTO


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to start from. A plain string stands for `name`."""

    SHORTHAND: ClassVar[str] = "name"

    name: str = option(doc="Hub id, folder, .gguf file, or a built-in alias such as `smollm2-135m`.")
    revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    trust_remote_code: bool = option(
        False, "Run the Python code that comes with the model. Off unless this file says so: it is other people's code."
    )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data source. A plain string stands for `path`."""

    SHORTHAND: ClassVar[str] = "path"

    path: str = option(
        doc="A .json or .jsonl file. A relative path is looked for in the current folder, then beside this file."
    )
    format: str = option(AUTO, "A data format's name; `auto` detects it from the columns of the first rows.")
    rows: int | None = option(None, "Take only this many rows, from the start.", ge=1)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on, and what to hold out."""

    train: tuple[SourceConfig, ...] = option(doc="Sources of training rows, concatenated.")
    eval: float | int | tuple[SourceConfig, ...] = option(
        0.0,
        "Held-out rows: a part of the training rows (0.05), a number of them (100), or sources of their own. Which rows "
        "are held out depends on their content and the seed, not on their order.",
        unit="part, rows or sources",
        ge=0,
    )
    max_length: int = option(1024, "Longer rows are dropped, and counted in the report.", unit="tokens", ge=8)
    train_on: Literal["completion", "all"] = option(
        "completion", "Which tokens of a conversation are learned: the assistant's turns, or every token."
    )

    def __post_init__(self) -> None:
        if isinstance(self.eval, float) and self.eval >= 1:
            raise ValueError(f"eval: {self.eval} is no part of the rows; write 0.05 for a part, 100 for a number of rows")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, in which batches, and what is kept on the way."""

    epochs: float = option(1.0, "Passes over the training rows.", gt=0)
    max_steps: int | None = option(None, "Stop after this many optimizer steps, whatever `epochs` says.", ge=1)
    batch_tokens: int = option(
        2048, "Tokens of a micro-batch, padding included; rows of similar length are put together.", unit="tokens", ge=8
    )
    accumulation: int = option(1, "Micro-batches per optimizer step; every trained token weighs the same.", ge=1)
    seed: int = option(0, "Decides held-out rows, order, initialisation and dropout.", ge=0)
    log_every: int = option(1, "Report loss and speed every so many optimizer steps.", ge=1)
    eval_every: int | None = option(
        None, "Measure the held-out loss every so many optimizer steps; always at the end when rows are held out.", ge=1
    )
    save_every: int | None = option(None, "Save a checkpoint every so many optimizer steps.", ge=1)
    keep_checkpoints: int = option(2, "Older checkpoints beyond this number are removed.", ge=1)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole configuration. The slots take a name, `{use: name, ...options}`, or `auto`."""

    model: ModelConfig = option(doc="The model to start from.")
    data: DataConfig = option(doc="What to train on.")
    stage: Choice = option(Choice(), "Training stage: what is learned from the data.")
    adapter: Choice = option(Choice(), "Which parameters train.")
    optimizer: Choice = option(Choice(), "How they move.")
    attention: Choice = option(Choice(), "The attention kernel.")
    patches: Choice | tuple[Choice, ...] = option(Choice(), "Model patches: `auto`, or a list of names and options.")
    precision: Literal["auto", "fp32", "bf16", "mixed"] = option(
        AUTO,
        "`fp32`, `bf16` (weights and products), or `mixed` (fp32 weights, bf16 products); `auto` asks the dtype probe of "
        "this machine and whether the base weights train.",
    )
    train: TrainConfig = option(TrainConfig(), "How long and in which batches.")
    output: str = option("runs/latest", "Folder for everything the run leaves.")


SLOT_KEYS: Final = ("stage", "adapter", "optimizer", "attention", "patches")


def choices(value: Choice | tuple[Choice, ...]) -> tuple[Choice, ...]:
    """A slot's value as a tuple, whichever way it was written."""
    return value if isinstance(value, tuple) else (value,)


def plain_choice(choice: Choice) -> str | dict[str, Any]:
    """The way a choice is written in a file."""
    options: Mapping[str, Any] = choice.options
    return {"use": choice.use, **options} if options else choice.use
