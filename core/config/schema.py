"""The keys of a configuration file. Each field documents itself; docs/config.md is generated from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from luthier.core.frozen import FrozenDict, thaw
from luthier.core.options import option

AUTO: Final = "auto"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a slot says: a name and the options written beside it. `use: auto` leaves the choice to the plan."""

    SHORTHAND: ClassVar[str] = "use"
    REST: ClassVar[str] = "options"

    use: str = AUTO
    options: FrozenDict[str, Any] = field(default_factory=FrozenDict)

    @property
    def is_auto(self) -> bool:
        return self.use == AUTO

    def as_written(self) -> str | dict[str, Any]:
        """The way a choice is written in a file."""
        return {"use": self.use, **thaw(self.options)} if self.options else self.use


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to start from. A plain string stands for `name`."""

    SHORTHAND: ClassVar[str] = "name"

    name: str = option(
        doc="Hub id, folder, .gguf file, a built-in alias such as `smollm2-135m`, or the output folder (or a checkpoint) of "
        "a former run, with what it trained."
    )
    adapters: Literal["auto", "merge", "stack"] = option(
        AUTO,
        "With a former run's adapter: `merge` folds it into the weights, `stack` keeps it, frozen, below the one that "
        "trains; `auto` merges what can be folded into weights that are not quantised, and the plan says which.",
    )
    revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    trust_remote_code: bool = option(
        False, "Run the Python code that comes with the model. Off unless this file says so: it is other people's code."
    )


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data source: exactly one of `path`, `hub`, `dataset` and `inline`. A plain string stands for `path`."""

    SHORTHAND: ClassVar[str] = "path"
    SAMPLE: ClassVar[tuple[str, ...]] = ("path", "format")  # what an example shows of it

    path: str | None = option(
        None,
        "A file, folder, glob or URL (https://, s3://, hf://, ...) of .json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt "
        "files, which may be compressed (.gz, .bz2, .xz, .zst). A relative path is looked for in the current folder, then "
        "beside this file.",
    )
    hub: str | None = option(None, "A data set on the Hugging Face hub, such as `HuggingFaceH4/ultrachat_200k`.")
    subset: str | None = option(None, "Configuration of a hub data set.")
    split: str = option("train", "Split of a hub data set.")
    revision: str | None = option(None, "Branch, tag or commit of a hub data set.")
    dataset: str | None = option(None, "The name of an entry in `data.dataset_info`.")
    inline: tuple[FrozenDict[str, Any], ...] = option((), "The rows themselves.")
    type: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "arrow", "text"] = option(
        AUTO, "How the files are written; `auto` tells it from their names."
    )
    encoding: str = option("utf-8", "Character encoding of text files.")
    format: Choice = option(
        Choice(), "A data format's name, or `{use: name, ...options}`; `auto` detects it from the columns of the first rows."
    )
    columns: FrozenDict[str, str] = option(
        FrozenDict(), "Where the rows call a column of the format otherwise: `{instruction: question, output: answer}`."
    )
    kind: Literal["auto", "text", "conversation", "preference", "unpaired", "prompt"] = option(
        AUTO,
        "What to learn from the rows, where it is not what their format holds: `conversation` of preference rows are their "
        "chosen answers.",
    )
    rows: int | None = option(None, "Take only this many rows, from the start.", ge=1)
    sample: float | int | None = option(
        None, "Take a random part of the rows (0.1), or a number of them (1000): more than there are repeats some.", gt=0
    )
    weight: float = option(1.0, "How often this source is drawn from under `mix: interleave`, against the others.", gt=0)

    def __post_init__(self) -> None:
        given = [name for name in ("path", "hub", "dataset", "inline") if getattr(self, name)]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"a source has exactly one of path, hub, dataset and inline; {found}")
        if isinstance(self.sample, float) and self.sample > 1 and not self.sample.is_integer():
            raise ValueError(f"sample: {self.sample} is neither a part of the rows nor a number of them")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on, what to hold out, and how rows become tokens and labels."""

    train: tuple[SourceConfig, ...] = option(doc="Sources of training rows.")
    eval: float | int | tuple[SourceConfig, ...] = option(
        0.0,
        "Held-out rows: a part of the training rows (0.05), a number of them (100), or sources of their own. Which rows "
        "are held out depends on their content and the seed, not on their order.",
        unit="part, rows or sources",
        ge=0,
    )
    dataset_info: str | None = option(None, "LLaMA-Factory's `dataset_info.json`, or the folder it lies in.")
    mix: Literal["concatenate", "interleave"] = option(
        "concatenate", "How several sources become one: one after another, or drawn at random by their weights."
    )
    stop: Literal["first_exhausted", "all_exhausted"] = option(
        "first_exhausted",
        "When interleaving ends: as soon as one source is used up, or when all are (the others begin anew meanwhile).",
    )
    max_length: int = option(1024, "The longest row; see `too_long`.", unit="tokens", ge=8)
    too_long: Literal["drop", "truncate_left", "truncate_right", "split"] = option(
        "drop",
        "What happens to longer rows, each counted in the report: dropped, cut at the start or the end, or (text only) "
        "split into several.",
    )
    train_on: Literal["completion", "assistant", "last", "all"] = option(
        "completion",
        "Which tokens of a conversation are learned: `completion`, the assistant's turns, without those of a given prompt; "
        "`assistant`, those too; `last`, only the last turn; `all`, every token. A message with `train: false` never is.",
    )
    template: str = option(
        AUTO, "Chat template: `auto` takes the model's own; else the name of a built-in one, or a .jinja file."
    )
    template_options: FrozenDict[str, Any] = option(
        FrozenDict(), "Variables given to the chat template, such as `{enable_thinking: false}`."
    )
    system: str | None = option(None, "System message of conversations that have none.")
    bad_rows: Literal["error", "drop"] = option(
        "error",
        "What happens to a row that its format cannot convert, or whose tokens are not those of inference: an error naming "
        "it, or dropped and counted.",
    )
    packing: bool = option(False, "Put several rows into one sequence; the attention keeps them apart, nothing is padding.")
    streaming: bool = option(
        False, "Read, tokenise and batch while training, for data that is larger than the disk; needs `train.max_steps`."
    )
    window: int = option(10_000, "Rows that are shuffled and batched together under `streaming`.", unit="rows", ge=1)
    workers: int = option(
        0, "Processes that tokenise; 0 takes one for each core that this process may use, and none under `streaming`.", ge=0
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
