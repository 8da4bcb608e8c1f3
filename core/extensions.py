"""The supporting descriptions: data formats, presets, architecture families, command-line verbs, run events."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from luthier.core.contracts import DataKind
from luthier.core.frozen import FrozenDict
from luthier.core.options import NoOptions

Row: TypeAlias = Mapping[str, Any]


class RowError(ValueError):
    """A row cannot be converted. `column` names what is wrong with it; the reader adds file and row number."""

    def __init__(self, message: str, *, column: str = "") -> None:
        self.column = column
        super().__init__(message)

    @property
    def reason(self) -> str:
        """Column and message without what belongs to this row alone, for counting rows by what is wrong with them."""
        column = re.sub(r"\[\d+\]", "[]", self.column)
        message = re.sub(r"'[^']*'|\"[^\"]*\"", "...", str(self).split(";")[0])
        return f"{column} {message}".strip()


@dataclass(frozen=True, kw_only=True)
class DataFormat:
    """A way in which rows say what to learn from.

    `detect(row)` tells from the columns whether a row has this format; among several that do, the highest `priority` wins.
    `convert(row)` returns the canonical form of its kind, or raises `RowError`; a `convert` with a parameter `options` gets
    the format's `config`, as the source gives it (`format: {use: sharegpt, role_tag: role}`).

        conversation   {"messages": [...], "completion": [...]?, "tools": [...]?}
        text           {"text": str}
        preference     {"messages": [...prompt...], "chosen": [...], "rejected": [...], "tools": [...]?, "margin": float?}
        unpaired       {"messages": [...prompt...], "completion": [...], "label": bool, "tools": [...]?}
        prompt         {"messages": [...], "tools": [...]?, "reference": anything?}

    A message is {"role": "system|user|assistant|tool", "content": str}, and may have `tool_calls` (a list of {"type":
    "function", "function": {"name": str, "arguments": {...}}}), `reasoning_content`, `name`, `tool_call_id`, and `train:
    false` for an answer that is not to be learned. `tools` are JSON schemas, as `apply_chat_template` takes them. A
    `completion` is what follows the messages of a given prompt, whose answers `data.train_on: completion` does not learn.
    """

    name: str
    summary: str
    kind: DataKind
    columns: str
    detect: Callable[[Row], bool]
    convert: Callable[..., Row]
    config: type[Any] = NoOptions
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A name for a combination. Written where a method of `slot` would stand, it expands to `config`.

        Preset(name="frugal", slot="adapter", summary="...", config={"adapter": "lora", "patches": ["checkpointing"]})

    Options written beside the name go to the method that `config` puts into the same slot; what the user set in another
    slot is kept, and a contradiction is a problem of the plan.
    """

    name: str
    slot: str
    summary: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ArchitectureFamily:
    """Data for models that structural detection misses: a map from role to module-path pattern for some model types.

    Patterns have `*` for the layer number, relative to the model: {"attn.qkv": "transformer.h.*.attention.fused"}.
    """

    name: str
    model_types: tuple[str, ...]
    roles: Mapping[str, str]
    decoder: str = ""


BUILT_IN_VERBS: Final = ("demo", "plan", "train", "evaluate", "merge", "methods", "explain", "profile", "data", "doctor")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A verb of the command line. `run(arguments)` gets the words after the verb and returns the exit code.

    The name of a built-in verb cannot be taken: the plugin would be listed as broken.
    """

    name: str
    summary: str
    run: Callable[[list[str]], int]


EventKind = Literal["start", "phase", "step", "evaluate", "checkpoint", "notice", "warning", "finish", "error"]


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """Something that happened in a run. `values` is JSON-shaped, so that it can cross to another process.

    start        steps, epochs, tokens, rows, resumed_from
    phase        name ("data", "load", "attach", "train", "save", ...); while data is tokenised, again and again without a
                 message: source, rows (done), of (how many, or null)
    step         step, steps, loss, lr, grad_norm, epoch, tokens_per_second, trained_tokens_per_second, memory, remaining
    evaluate     step, and what the stage measures on held-out rows: loss, perplexity, exact_match, accuracy, margin, ...
    checkpoint   step, folder
    finish       the content of all_results.json
    """

    kind: EventKind
    message: str = ""
    values: FrozenDict[str, Any] = field(default_factory=FrozenDict)
