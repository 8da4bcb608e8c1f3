"""What a method is: typed, frozen descriptions that plugins return and the core acts on.

Standard library only: a plugin is described without importing torch. Hooks return these and have no side effects;
the core selects by configuration, checks, orders and calls.

    slot          one per run   what it decides
    patches       any number    how the model's own code and weights are changed     (ModelPatch)
    adapter       one           which parameters train                               (Adapter)
    optimizer     one           how they move                                        (OptimizerMethod)
    attention     one           which kernel computes attention                      (AttentionKernel)
    stage         one           what is learned, from which kind of data             (TrainingStage)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, TypeAlias, TypeVar

from luthier.core.environment import Environment
from luthier.core.errors import LuthierError, Problem
from luthier.core.frozen import FrozenDict
from luthier.core.options import NoOptions
from luthier.core.profile import ArchitectureProfile
from luthier.core.traits import AnyOf, Claim, Trait

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from luthier.core.catalog import Catalog
    from luthier.core.plan import Plan
    from luthier.core.runtime import Runtime

C = TypeVar("C")

Undo: TypeAlias = Callable[[], None]
Numerics = Literal["exact", "close", "changes"]
Phase = Literal["load", "loaded", "attached"]
DataKind = Literal["text", "conversation", "preference", "unpaired", "prompt"]
Task = Literal["causal", "score"]
Reference = Literal["disabled", "copied", "precomputed", "model"]


@dataclass(frozen=True)
class Support:
    """A method's own answer for one model, machine and configuration.

    `kind` "missing" is a `no` for a reason of environment: a package or a device, not the configuration.
    """

    kind: Literal["yes", "experimental", "no", "missing"]
    reason: str = ""
    fix: str = ""

    @classmethod
    def yes(cls, reason: str = "") -> Support:
        return cls("yes", reason)

    @classmethod
    def experimental(cls, note: str) -> Support:
        """It runs; the note becomes a warning of the plan."""
        return cls("experimental", note)

    @classmethod
    def no(cls, reason: str, fix: str = "") -> Support:
        return cls("no", reason, fix)

    @classmethod
    def missing(cls, reason: str, fix: str = "") -> Support:
        return cls("missing", reason, fix)

    def __bool__(self) -> bool:
        return self.kind in ("yes", "experimental")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a method declares *in addition* to its static fields, for one model and one configuration.

    For example LoRA provides "reference.by_disabling" only with an initialisation that leaves the model as it was.
    `reasons` says, for a trait in `conflicts` or `requires`, why: which option minds it, and what to write instead; for one
    that another would have it provide, why it does not here.
    """

    provides: frozenset[Trait] = frozenset()
    requires: tuple[AnyOf, ...] = ()
    conflicts: frozenset[Trait] = frozenset()
    claims: frozenset[Claim] = frozenset()
    removes: frozenset[Trait] = frozenset()
    reasons: FrozenDict[Trait, str] = field(default_factory=FrozenDict)


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """`count` tensors of one role and shape that train: what an optimizer whose state depends on shapes is asked about."""

    role: str
    shape: tuple[int, ...]
    count: int = 1

    @property
    def size(self) -> int:
        """Parameters of one of them."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class StateSize:
    """Optimizer state or gradient of one tensor: `numbers` in the format of the parameter, and `bytes` in any other."""

    numbers: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MemoryTerms:
    """A method's share of the predicted memory; the planner adds the shares up (see core/memory.py).

    trainable           parameters that this method makes trainable, added to the model or already there
    added               of these, how many are new parameters beside the model's own
    trainable_bytes     bytes per trainable parameter as stored; None for the precision the plan chose
    matrices            the trained tensors by role and shape, which add up to `trainable`; empty where nobody can say
    weight_bytes        bytes per parameter of the base weights; None where the method does not change their storage
    stored_parameters   how many base parameters `weight_bytes` is about; None for all
    optimizer_bytes     optimizer state bytes per trainable parameter, whatever format that is stored in
    optimizer_copies    numbers of optimizer state per trainable parameter, in the parameter's own format
    optimizer_state     the state of one trained tensor, where it depends on its shape or role: in place of the two before
                        it, which stay as the answer for tensors whose shape is not known
    gradient_scale      part of the gradients that exist at one time (below 1 where they are freed in the backward pass)
    gradient            what is left of the gradient of one trained tensor after the backward pass, where that depends on its
                        shape or role: in place of `gradient_scale`, which stays as the answer for shapes that are not known
    moved_at_once       of what another method made trainable, how many parameters have gradients and state at one time,
                        where an optimizer leaves the rest alone meanwhile; None for all of them
    cast_inputs         features per token, all layers together, that the method's modules keep in float32 for the backward
                        pass where the base weights are narrower
    activation_scale    factor on the activations that the decoder layers keep for the backward pass
    recomputed          numbers per token that one layer holds again while the backward pass computes it anew, added once to
                        the product of all factors: it is there in full, however few layers keep anything
    pair_bytes          bytes that attention keeps for the backward pass for each pair of positions of a packed sequence, all
                        layers together, given the bytes of a number in the format it computes in: masks, scores
    constant            bytes that depend on none of these
    """

    trainable: int = 0
    added: int = 0
    trainable_bytes: float | None = None
    matrices: tuple[Matrix, ...] = ()
    weight_bytes: float | None = None
    stored_parameters: int | None = None
    optimizer_bytes: float = 0.0
    optimizer_copies: float = 0.0
    optimizer_state: Callable[[Matrix], StateSize] | None = None
    gradient_scale: float = 1.0
    gradient: Callable[[Matrix], StateSize] | None = None
    moved_at_once: Callable[[MemoryTerms], int] | None = None
    cast_inputs: int = 0
    activation_scale: float = 1.0
    recomputed: int = 0
    pair_bytes: Callable[[int], float] | None = None
    constant: int = 0


def _supported(profile: ArchitectureProfile, environment: Environment, config: Any) -> Support:
    return Support.yes()


def _nothing_more(profile: ArchitectureProfile, config: Any) -> Declaration:
    return Declaration()


def _no_load_options(profile: ArchitectureProfile, config: Any) -> Mapping[str, object]:
    return {}


def _no_memory(profile: ArchitectureProfile, config: Any) -> MemoryTerms:
    return MemoryTerms()


def _no_reference(config: Any) -> tuple[Reference, ...]:
    return ()


def _no_problems(plan: Plan, catalog: Catalog, config: Any) -> Sequence[Problem]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Method(Generic[C]):
    """The common part of every method; a subclass adds what its slot does with it.

    name        what a configuration file says
    summary     one line, shown by `luthier methods`
    config      frozen keyword-only dataclass of documented `option()` fields; validated strictly
    provides    facts this method makes true of the run
    requires    each: at least one of these traits must be true of the run
    conflicts   traits that must not be true of the run
    claims      things only one method of a run may own
    removes     traits of the model or the machine that are not true of a run with this method in it
    declares    more of these five, where they depend on the model or on the options
    numerics    against the plain model: "exact" (same numbers), "close" (rounding differs), "changes" (on purpose)
    packages    PEP 508 requirements, checked from metadata before anything is imported
    supports    the method's own yes, experimental(note), no(reason) or missing(reason)
    load_options  keyword arguments for the model's `from_pretrained`
    memory      its share of the prediction
    priority    order among the candidates when a slot says "auto"; 0 or less is taken only when named
    example     options that make a run of it, where it has required ones: for the matrix of combinations and the tests
    reference   the paper or project it follows, as text for the documentation
    """

    slot: ClassVar[str] = ""

    name: str
    summary: str
    config: type[C] = NoOptions  # type: ignore[assignment]  # a method without options needs no class of its own
    provides: frozenset[Trait] = frozenset()
    requires: tuple[AnyOf, ...] = ()
    conflicts: frozenset[Trait] = frozenset()
    claims: frozenset[Claim] = frozenset()
    removes: frozenset[Trait] = frozenset()
    declares: Callable[[ArchitectureProfile, C], Declaration] = _nothing_more
    numerics: Numerics = "exact"
    packages: tuple[str, ...] = ()
    supports: Callable[[ArchitectureProfile, Environment, C], Support] = _supported
    load_options: Callable[[ArchitectureProfile, C], Mapping[str, object]] = _no_load_options
    memory: Callable[[ArchitectureProfile, C], MemoryTerms] = _no_memory
    priority: int = 0
    example: Mapping[str, object] = field(default_factory=dict)
    reference: str = ""

    def declaration(self, profile: ArchitectureProfile, config: C) -> Declaration:
        """The static fields and `declares` together."""
        more = self.declares(profile, config)
        return Declaration(
            provides=self.provides | more.provides,
            requires=self.requires + more.requires,
            conflicts=self.conflicts | more.conflicts,
            claims=self.claims | more.claims,
            removes=self.removes | more.removes,
            reasons=more.reasons,
        )


@dataclass(frozen=True, kw_only=True)
class ModelPatch(Method[C]):
    """Changes the model's code or weights. `apply(model, profile, config)` returns a callable that undoes it.

    An `apply` with a parameter `context` gets a `BuildContext`. `edit_tokenizer(tokenizer, profile, config)` changes the
    tokenizer in place, before any row is tokenised; with a parameter `notice` it can say what it did. Phase "load": before
    the model is loaded (model is None); "loaded": right after; "attached": after the adapter. An `isolate` patch must be
    imported before transformers, so its run goes to a clean worker process, where `prepare()` is the first thing called.
    What a `persistent` patch changes is part of the model that was trained: it is applied again whenever a run's adapter is
    loaded, as for merging. A patch that finds nothing to change raises `NothingPatched`.
    """

    slot: ClassVar[str] = "patches"

    apply: Callable[..., Undo]
    edit_tokenizer: Callable[..., None] | None = None
    phase: Phase = "loaded"
    persistent: bool = False
    isolate: bool = False
    prepare: Callable[[], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Adapter(Method[C]):
    """Decides which parameters train. `attach(model, profile, config)` returns the model to train, trainables marked.

    An `attach` with a parameter `context` gets a `BuildContext`, for example for an initialisation from training rows.
    `save(model, folder)` and `load(model, folder, trainable)` default to the layouts of PEFT and transformers.
    `merge(model)` returns the model with the update folded into plain weights, where that can be done.
    """

    slot: ClassVar[str] = "adapter"

    attach: Callable[..., nn.Module]
    merge: Callable[[nn.Module], nn.Module] | None = None
    save: Callable[[nn.Module, Path], None] | None = None
    load: Callable[[nn.Module, Path, bool], nn.Module] | None = None


AfterStep: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class OptimizerMethod(Method[C]):
    """Moves the trainable parameters. `build(model, config)` returns the optimizer and callables run after each step.

    A `build` with a parameter `profile` gets the ArchitectureProfile, to tell parameters apart by role; one with `context` a
    `BuildContext`. A `config` that extends `luthier.core.schedule.OptimizerOptions` gets its learning-rate schedule and
    gradient clipping from the core; any other trains at the rate the optimizer was built with, and the plan says so. An
    optimizer that does not leave whole gradients in `.grad` brings `clip_grad_norm_(max_norm) -> Tensor`, which clips what
    it holds and returns the norm from before; the trainer calls it in place of torch's.
    """

    slot: ClassVar[str] = "optimizer"

    build: Callable[..., tuple[Optimizer, tuple[AfterStep, ...]]]


@dataclass(frozen=True, kw_only=True)
class AttentionKernel(Method[C]):
    """A kernel known to transformers as `implementation`, an AttentionInterface key.

    `register()` makes the key known, with its mask function, and is called once before the model is loaded; kernels that
    transformers ships need none.
    """

    slot: ClassVar[str] = "attention"

    implementation: str
    register: Callable[[], None] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingStage(Method[C]):
    """What is learned. `run(runtime, config)` trains and returns its final metrics.

    data_kind   the rows it learns from
    task        the model it trains: "causal" with its language-model head, or "score" with a head of one number in its place
                (transformers' AutoModelForSequenceClassification), which trains whatever else does; that provides
                "model.score_head"
    references  the ways in which it can have its reference model, the policy as training found it, best first; none where it
                needs none. The plan takes the first that the adapter's traits allow (core/references.py tells them apart)
    check_plan  what it finds wrong with a plan that is complete otherwise, asked with (plan, catalog, config)
    """

    slot: ClassVar[str] = "stage"

    run: Callable[[Runtime, C], Mapping[str, float]]
    data_kind: DataKind
    task: Task = "causal"
    references: Callable[[C], tuple[Reference, ...]] = _no_reference
    check_plan: Callable[[Plan, Catalog, C], Sequence[Problem]] = _no_problems

    def __post_init__(self) -> None:
        if self.task == "score":
            object.__setattr__(self, "provides", self.provides | {"model.score_head"})


class NothingPatched(LuthierError):
    """Raised by a method that found nothing to change: the run stops, because a selected method that does nothing lies."""


SLOTS: Final[dict[str, type[Method[Any]]]] = {
    kind.slot: kind for kind in (ModelPatch, Adapter, OptimizerMethod, AttentionKernel, TrainingStage)
}
AnyMethod: TypeAlias = Method[Any]
