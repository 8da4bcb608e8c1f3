"""The plan: what a run will do and why, decided before anything heavy is loaded.

A frozen, hashable value. `Plan.from_json(plan.to_json()) == plan`, so that it can be printed, kept beside the results and
handed to worker processes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from luthier.core.frozen import FrozenDict, canonical_json, thaw
from luthier.core.profile import ArchitectureProfile
from luthier.core.serial import from_plain, to_plain

PLAN_VERSION: Final = 1
# Keys of `train` that decide what is reported and kept, and no weight: a run is resumed with others as well.
REPORTING: Final = frozenset({"log_every", "eval_every", "save_every", "keep_checkpoints"})
# Keys of `data` that decide how fast the same tokens are made.
SPEED: Final = frozenset({"workers"})
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One method of the plan: its slot, who provides it, its full configuration, and why it was chosen.

    `reference` is how a stage has its reference policy (core/references.py), where it needs one.
    """

    slot: str
    method: str
    provider: str
    config: FrozenDict[str, Any] = field(default_factory=FrozenDict)
    why: str = ""
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A candidate that an `auto` slot did not take, and why."""

    slot: str
    method: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How numbers are held: `weights` of the base model, `compute` of the matrix products, autocast when they differ."""

    name: Literal["fp32", "bf16", "mixed"]
    weights: Dtype
    compute: Dtype
    why: str

    @property
    def autocast(self) -> bool:
        return self.weights != self.compute


@dataclass(frozen=True, kw_only=True)
class MemoryForecast:
    """Predicted bytes: what is held throughout, what a step adds, and the highest sum of both."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    peak: int = 0


@dataclass(frozen=True, kw_only=True)
class FormerRun:
    """The run that a model was trained by, and how what it trained gets into this one (core/former.py).

    folder      its output folder, or one of its checkpoints
    how         "whole": it left a whole model; "merge": its adapter is folded into plain weights, which lie in the cache;
                "stack": its adapter stays, frozen, below the one that trains
    why         the reason for that
    content     a hash over what it trained: another one is another run
    base        the model that it trained
    stage, adapter, task   what it learned, with what, and which head its model has
    patches     of its patches, those that belong to the model
    quantized   whether it trained on quantised weights
    """

    folder: str
    how: Literal["whole", "merge", "stack"]
    why: str
    content: str
    base: ModelReference
    stage: str
    adapter: str
    task: Literal["causal", "score"] = "causal"
    patches: tuple[Step, ...] = ()
    quantized: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelReference:
    """Where the model is: `name` as the user wrote it, `path` where it lies (a folder, or a hub id), `gguf` its file.

    A `former` run is what it is made from. `tokenizer` is the folder of its tokenizer, where that lies elsewhere.
    """

    name: str
    path: str
    kind: Literal["folder", "hub", "gguf", "alias", "run"]
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    tokenizer: str | None = None
    former: FormerRun | None = None

    @property
    def origin(self) -> ModelReference:
        """The published model at the beginning of the chain."""
        return self.former.base.origin if self.former else self

    @property
    def foot(self) -> ModelReference:
        """The model that an adapter fits: of a stack the one below all adapters, else this one."""
        return self.former.base.foot if self.former and self.former.how == "stack" else self

    @property
    def weights(self) -> dict[str, Any]:
        """What tells the weights of two models apart, JSON-shaped."""
        former = self.former and {
            "how": self.former.how,
            "content": self.former.content,
            "base": self.former.base.weights,
        }
        return {"path": self.path, "revision": self.revision, "gguf_file": self.gguf_file, "former": former}


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """What the first look at one data source found; `rows` is None for a stream."""

    path: str
    format: str
    kind: str
    rows: int | None
    why: str
    role: Literal["train", "eval"] = "train"


@dataclass(frozen=True, kw_only=True)
class DataLook:
    """What became of the first rows of each training source: rows + the sum of `added` == kept + the sum of `dropped`.

    `whole` says that these were all of them. `tokens` are those of the kept rows, `trained_tokens` those that are learned.
    """

    rows: int
    whole: bool
    kept: int
    dropped: FrozenDict[str, int]
    cut: FrozenDict[str, int]
    added: FrozenDict[str, int]
    notes: FrozenDict[str, int]
    tokens: int
    trained_tokens: int
    labels_from: str
    template: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything `execute()` needs, and everything a reader wants to know before it runs.

    `task` is that of the stage: "causal" loads a language model, "score" one with a head of one number in place of its head.
    `profile` is that of the model that is loaded.
    """

    model: ModelReference
    profile: ArchitectureProfile
    steps: tuple[Step, ...]
    precision: Precision
    config: FrozenDict[str, Any]
    data: tuple[SourceSummary, ...] = ()
    data_look: DataLook | None = None
    device: str = "cpu"
    task: Literal["causal", "score"] = "causal"
    traits: tuple[str, ...] = ()
    load_options: FrozenDict[str, Any] = field(default_factory=FrozenDict)
    warnings: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    memory: MemoryForecast = field(default_factory=MemoryForecast)
    isolate: bool = False
    version: int = PLAN_VERSION

    def step(self, slot: str) -> Step:
        """The one step of a slot that holds exactly one method."""
        return next(step for step in self.steps if step.slot == slot)

    def steps_in(self, slot: str) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.slot == slot)

    def to_plain(self) -> dict[str, Any]:
        """JSON-shaped; `problems` is empty, because a plan with problems is refused and never made."""
        plain: dict[str, Any] = to_plain(self)
        return plain | {"problems": [], "hash": self.hash}

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_plain(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises ValueError when the text is no plan, or one of another version."""
        try:
            return cls.from_plain(json.loads(text))
        except RecursionError:
            raise ValueError("this is no plan: nested too deeply") from None

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Plan:
        version = plain.get("version") if isinstance(plain, dict) else None
        if version != PLAN_VERSION:
            raise ValueError(f"a plan of version {version}; this Luthier reads version {PLAN_VERSION}: plan again")
        body = {key: value for key, value in plain.items() if key not in ("problems", "hash")}
        try:
            return from_plain(cls, body)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"this is no plan: {error}") from None

    @property
    def hash(self) -> str:
        """Sixteen hex digits over what decides the results: two plans of one hash train the same way."""
        decisive = {
            "model": {"name": self.model.name, "trust_remote_code": self.model.trust_remote_code, **self.model.weights},
            "steps": [[step.slot, step.method, step.provider, thaw(step.config)] for step in self.steps],
            "precision": self.precision.name,
            "config": self.decisive_config(),
            "load_options": thaw(self.load_options),
        }
        return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()[:16]

    def decisive_config(self) -> dict[str, Any]:
        """The configuration as plain data, without what changes no weight: `output`, when to report, evaluate and save."""
        config: dict[str, Any] = {key: value for key, value in thaw(self.config).items() if key != "output"}
        if "train" in config:
            config["train"] = {key: value for key, value in config["train"].items() if key not in REPORTING}
        if "data" in config:
            config["data"] = {key: value for key, value in config["data"].items() if key not in SPEED}
        return config
