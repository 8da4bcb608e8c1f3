"""What every contract shares: the method, the cases it is tried on, and what it answers before anything is done.

The questions are those that a plan asks (`core/resolve`): options, packages, `supports`, traits. A case that the method
refuses is checked for its reason alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest
import torch

from luthier.core.calling import call
from luthier.core.catalog import Catalog, Offer, Provider
from luthier.core.config.schema import Choice
from luthier.core.context import BuildContext
from luthier.core.contracts import Adapter, AnyMethod, MemoryTerms
from luthier.core.environment import Environment
from luthier.core.errors import Problem
from luthier.core.frozen import FrozenDict, freeze
from luthier.core.loading import load_model
from luthier.core.options import NoOptions
from luthier.core.plan import Dtype, ModelReference, Plan, Precision
from luthier.core.profile import ArchitectureProfile
from luthier.core.resolve.compat import explain, find
from luthier.core.resolve.picks import Pick, Situation, examine
from luthier.core.targets import every_matrix
from luthier.core.testing.models import KINDS, REFERENCE_ATTENTION, TinyModel, tiny_model, tiny_tokenizer, token_batch
from luthier.core.testing.surroundings import Surroundings, installed, installed_catalog, this_machine

if TYPE_CHECKING:
    from torch import nn

KIT: Final = Provider(plugin="luthier.core.testing")
DEFECT: Final = "this is a defect of"  # core/resolve/picks.py says so of a method that raised when it was asked
_PROFILES: dict[Any, ArchitectureProfile] = {}
_VERDICTS: dict[tuple[type, Case], Verdict] = {}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a set of options: transformers' model type, and what the model's configuration says differently."""

    kind: str
    options: FrozenDict[str, Any] = dataclasses.field(default_factory=FrozenDict)
    changes: FrozenDict[str, Any] = dataclasses.field(default_factory=FrozenDict)

    def __str__(self) -> str:
        words = [self.kind]
        words += [f"{key}={value}" for settings in (self.changes, self.options) for key, value in settings.items()]
        return "-".join(words)

    @property
    def tiny(self) -> TinyModel:
        return tiny_model(self.kind, self.changes)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a plan would say: `pick` is the method with its options, `partner` the adapter beside it where one is needed."""

    pick: Pick | None
    problems: tuple[Problem, ...] = ()
    partner: Pick | None = None

    @property
    def lacking(self) -> str:
        """What this machine lacks, where that is all that speaks against it."""
        reasons = [
            problem.reason for problem in self.problems if problem.kind == "environment" and DEFECT not in problem.reason
        ]
        return "; ".join(reasons) if len(reasons) == len(self.problems) else ""


class Contract:
    """The base of all contracts: set `method`, and what else is not as it should be for it.

    method     its name among the installed ones, or the description itself
    options    the configurations to try, each beside the method's own `example`
    kinds      the models to try, as model types of transformers; see `luthier.core.testing.KINDS`
    changes    what their configurations say differently, by model type: {"llama": {"tie_word_embeddings": True}}
    """

    slot: ClassVar[str] = ""
    method: ClassVar[str | AnyMethod] = ""
    options: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    kinds: ClassVar[Sequence[str]] = KINDS
    changes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    surroundings: ClassVar[Surroundings | None] = None

    # ---- the method and its cases

    def cases(self) -> Iterable[Case]:
        """Every model with every set of options."""
        example = self.description.example
        for kind in self.kinds:
            for options in self.options:
                yield Case(kind, freeze({**example, **options}), freeze(dict(self.changes.get(kind, {}))))

    def marks(self, case: Case) -> Sequence[pytest.MarkDecorator]:
        """pytest marks for the checks of one case, for example to leave it out of a quick run."""
        return ()

    @property
    def description(self) -> Any:
        """The method."""
        if isinstance(self.method, str):
            return self.catalog().method(self.slot, self.method)
        return self.method

    def catalog(self) -> Catalog:
        """The installed methods, and the one under test where it was given as itself."""
        catalog = installed_catalog() if self.surroundings is None else self.surroundings.catalog()
        return catalog if isinstance(self.method, str) else with_methods(catalog, self.method)

    def environment(self) -> Environment:
        return this_machine() if self.surroundings is None else self.surroundings.environment()

    def situation(self, case: Case) -> Situation:
        return Situation(profile=self.profile(case), environment=self.environment(), catalog=self.catalog())

    def profile(self, case: Case) -> ArchitectureProfile:
        key = (id(self.surroundings), case.tiny)
        if key not in _PROFILES:
            around = self.surroundings or installed()
            _PROFILES[key] = around.profile(case.tiny.config, self.catalog())
        return _PROFILES[key]

    def verdict(self, case: Case) -> Verdict:
        """What a plan would say to this method on this model."""
        key = (type(self), case)
        if key not in _VERDICTS:
            _VERDICTS[key] = self._verdict(case)
        return _VERDICTS[key]

    def _verdict(self, case: Case) -> Verdict:
        situation = self.situation(case)
        pick, problems = examine(self.slot, Choice(use=self.description.name, options=case.options), "", situation)
        if pick is None or problems:
            return Verdict(pick, tuple(problems))
        refused: list[list[Pick]] = []
        for partner in self.partners(situation):
            picks = [pick, *([partner] if partner else [])]
            if not find(picks, situation):
                return Verdict(pick, partner=partner)
            refused.append(picks)
        if not refused:
            return Verdict(pick, (Problem(reason="no adapter says yes to this model"),))
        return Verdict(pick, tuple(explain(clash, refused[0], situation) for clash in find(refused[0], situation)))

    def partners(self, situation: Situation) -> Iterable[Pick | None]:
        """What the method may stand beside, the first that combines with it is taken; None stands for nothing."""
        return (None,)

    def pick(self, case: Case) -> Pick:
        """The method with its options read."""
        pick = self.verdict(case).pick
        assert pick is not None, f"{case} is not possible"
        return pick

    def load(self, case: Case, dtype: Dtype = "float32", options: Mapping[str, Any] | None = None) -> Any:
        """A fresh model, loaded as a run loads it, in evaluation mode; `options` are those that methods ask for."""
        folder = str(case.tiny.folder)
        plan = Plan(
            model=ModelReference(name=case.kind, path=folder, kind="folder"),
            profile=self.profile(case),
            steps=(),
            precision=precision(dtype),
            config=FrozenDict(),
            load_options=freeze({"attn_implementation": REFERENCE_ATTENTION, **(options or {})}),
        )
        return load_model(plan).eval()

    def memory(self, case: Case) -> MemoryTerms:
        """The method's share of the prediction."""
        pick = self.pick(case)
        terms: MemoryTerms = pick.method.memory(self.profile(case), pick.config)
        return terms

    # ---- parametrisation

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each case: `any_case` all of them, `case` those that the method says yes to."""
        for name in {"case", "any_case"} & set(metafunc.fixturenames):
            parameters = [
                pytest.param(case, id=str(case), marks=[*self.marks(case), *(marks or ())])
                for case, marks in self._asked()
                if name == "any_case" or marks is not None
            ]
            metafunc.parametrize(name, parameters)

    def _asked(self) -> Iterable[tuple[Case, Sequence[pytest.MarkDecorator] | None]]:
        for case in self.cases():
            verdict = self.verdict(case)
            if verdict.lacking:
                yield case, [pytest.mark.skip(reason=verdict.lacking)]
            else:
                yield case, None if verdict.problems else []

    # ---- what it answers

    def test_it_answers(self, any_case: Case) -> None:
        """Yes, or a reason: of the options, of the model, or of what this machine lacks."""
        for problem in self.verdict(any_case).problems:
            assert DEFECT not in problem.reason, problem.reason
            assert not problem.reason.endswith("says no"), f"{problem.reason}, but not why: give Support.no() a reason"

    def test_it_says_yes_to_something(self) -> None:
        """A contract that every case refuses checks nothing."""
        answers = {str(case): self.verdict(case) for case in self.cases()}
        if not any(not verdict.problems or verdict.lacking for verdict in answers.values()):
            reasons = "\n".join(f"{case}: {verdict.problems[0].reason}" for case, verdict in answers.items())
            pytest.fail(f"no case is possible; choose `kinds` and `options` that are:\n{reasons}")


def with_methods(catalog: Catalog, *methods: AnyMethod) -> Catalog:
    """The catalog with these beside its own, or in place of those of the same name."""
    slots = {slot: dict(offers) for slot, offers in catalog.methods.items()}
    for method in methods:
        slots.setdefault(method.slot, {})[method.name] = Offer(value=method, provider=KIT)
    return dataclasses.replace(catalog, methods=FrozenDict({slot: FrozenDict(offers) for slot, offers in slots.items()}))


def precision(dtype: Dtype) -> Precision:
    """Weights and products in one format."""
    return Precision(name="bf16" if dtype == "bfloat16" else "fp32", weights=dtype, compute=dtype, why="for the contract")


def build_context(dtype: Dtype, tokenizer: Any = None) -> BuildContext:
    """What an `attach` or `apply` may ask for: the tiny tokenizer, and random batches."""
    original = tiny_tokenizer()

    def batches(count: int) -> Iterator[dict[str, torch.Tensor]]:
        return (token_batch(seed=100 + number) for number in range(count))

    return BuildContext(
        precision=precision(dtype), tokenizer=tokenizer or original, original_tokenizer=original, batches=batches
    )


def everything(model: nn.Module, profile: ArchitectureProfile, config: Any) -> nn.Module:
    """Marks every floating-point parameter trainable."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


# Beside an optimizer or a patch: all that they need of an adapter, where they need no special one.
EVERY_PARAMETER: Final = Adapter[NoOptions](
    name="every-parameter",
    summary="Every parameter trains.",
    provides=frozenset({"params.full_rank", "embeddings.trained"}),
    conflicts=frozenset({"weights.quantized", "model.prequantized"}),
    attach=everything,
    memory=lambda profile, config: MemoryTerms(trainable=profile.parameters, matrices=every_matrix(profile)),
)


def adapters_beside(situation: Situation) -> Iterator[Pick]:
    """Adapters for a method of another slot: every parameter, then the installed ones with their example, by priority."""
    offers: list[Offer[AnyMethod]] = [Offer(value=EVERY_PARAMETER, provider=KIT)]
    offers += sorted(situation.catalog.slot("adapter").values(), key=lambda offer: -offer.value.priority)
    catalog = with_methods(situation.catalog, EVERY_PARAMETER)
    for offer in offers:
        choice = Choice(use=offer.value.name, options=freeze(dict(offer.value.example)))
        pick, problems = examine("adapter", choice, "", dataclasses.replace(situation, catalog=catalog))
        if pick is not None and not problems:
            yield pick


def attach(partner: Pick, model: nn.Module, profile: ArchitectureProfile, context: BuildContext) -> nn.Module:
    """The adapter put on the model, its random numbers the same each time."""
    adapter = partner.method
    assert isinstance(adapter, Adapter)
    torch.manual_seed(0)
    return call(adapter.attach, model, profile, partner.config, context=context)
