"""Every adapter x quantisation x optimizer on one model and machine: whether it combines, and why not.

Nothing here knows a method by name. The axes are what the catalog holds: a quantisation is a patch that provides
"weights.quantized", and each cell is a plan that `resolve()` makes or refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Final, Literal

from luthier.core.catalog import Catalog
from luthier.core.config.schema import Choice, DataConfig, ModelConfig, RunConfig
from luthier.core.environment import Environment
from luthier.core.errors import PlanRefused, Problem
from luthier.core.frozen import FrozenDict, freeze
from luthier.core.plan import ModelReference
from luthier.core.profile import ArchitectureProfile
from luthier.core.resolve.picks import Answers
from luthier.core.resolve.resolver import EXPERIMENTAL, resolve

NO_QUANTISATION: Final = "none"
Outcome = Literal["yes", "experimental", "no", "missing"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination. `outcome` "missing" means that only a package or a device is lacking; `warnings` are its plan's."""

    adapter: str
    quantisation: str
    optimizer: str
    outcome: Outcome
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def possible(self) -> bool:
        """Whether it can be run here."""
        return self.outcome in ("yes", "experimental")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The cells of every combination, adapters slowest, optimizers quickest."""

    adapters: tuple[str, ...]
    quantisations: tuple[str, ...]
    optimizers: tuple[str, ...]
    cells: tuple[Cell, ...]

    def cell(self, adapter: str, quantisation: str, optimizer: str) -> Cell:
        wanted = (adapter, quantisation, optimizer)
        return next(cell for cell in self.cells if (cell.adapter, cell.quantisation, cell.optimizer) == wanted)


def combinations(
    *, model: ModelReference, profile: ArchitectureProfile, environment: Environment, catalog: Catalog
) -> Matrix:
    """Ask for a plan of each combination; a method with required options stands with those of its `example`."""
    adapters, optimizers = ordered("adapter", catalog), ordered("optimizer", catalog)
    quantisations = (NO_QUANTISATION, *quantising(catalog))
    answers: Answers = {}
    cells = tuple(
        _cell(adapter, quantisation, optimizer, model, profile, environment, catalog, answers)
        for adapter, quantisation, optimizer in product(adapters, quantisations, optimizers)
    )
    return Matrix(adapters=adapters, quantisations=quantisations, optimizers=optimizers, cells=cells)


def ordered(slot: str, catalog: Catalog) -> tuple[str, ...]:
    """The methods of a slot: those that `auto` would take first, then by name."""
    offers = catalog.slot(slot)
    return tuple(sorted(offers, key=lambda name: (-offers[name].value.priority, name)))


def quantising(catalog: Catalog) -> tuple[str, ...]:
    """The patches that store base weights in fewer bits."""
    return tuple(
        name for name in ordered("patches", catalog) if "weights.quantized" in catalog.method("patches", name).provides
    )


def combination_config(adapter: str, quantisation: str, optimizer: str, catalog: Catalog, **sections: Any) -> RunConfig:
    """The configuration of one cell: everything else is left to the plan. `sections` replace those of the configuration."""
    patches = () if quantisation == NO_QUANTISATION else (example_of("patches", quantisation, catalog),)
    fields: dict[str, Any] = {
        "model": ModelConfig(name="matrix"),
        "data": DataConfig(train=()),
        "adapter": example_of("adapter", adapter, catalog),
        "optimizer": example_of("optimizer", optimizer, catalog),
        "patches": patches,
    }
    return RunConfig(**fields | sections)


def footnotes(cells: Iterable[Cell]) -> dict[str, int]:
    """The different reasons in order of appearance, numbered from 1."""
    numbers: dict[str, int] = {}
    for cell in cells:
        if not cell.possible:
            for reason in reasons(cell):
                numbers.setdefault(reason, len(numbers) + 1)
    return numbers


def reasons(cell: Cell) -> tuple[str, ...]:
    """Why a cell does not combine, each reason once."""
    return tuple(dict.fromkeys(problem.reason for problem in cell.problems))


def describe(matrix: Matrix) -> Iterator[dict[str, Any]]:
    """The cells as JSON-shaped data."""
    for cell in matrix.cells:
        yield {
            "adapter": cell.adapter,
            "quantisation": cell.quantisation,
            "optimizer": cell.optimizer,
            "outcome": cell.outcome,
            "problems": [
                {"reason": problem.reason, "fix": problem.fix, "kind": problem.kind, "methods": list(problem.methods)}
                for problem in cell.problems
            ],
            "warnings": list(cell.warnings),
        }


def example_of(slot: str, name: str, catalog: Catalog) -> Choice:
    """A method with its default options, or with those of its `example` where it has required ones."""
    return Choice(use=name, options=FrozenDict(freeze(catalog.method(slot, name).example)))


def _cell(
    adapter: str,
    quantisation: str,
    optimizer: str,
    model: ModelReference,
    profile: ArchitectureProfile,
    environment: Environment,
    catalog: Catalog,
    answers: Answers,
) -> Cell:
    cell = partial(Cell, adapter=adapter, quantisation=quantisation, optimizer=optimizer)
    config = combination_config(adapter, quantisation, optimizer, catalog)
    try:
        plan = resolve(config, model=model, profile=profile, environment=environment, catalog=catalog, answers=answers)
    except PlanRefused as refused:
        kinds = {problem.kind for problem in refused.problems}
        return cell(outcome="missing" if kinds == {"environment"} else "no", problems=refused.problems)
    doubtful = any(EXPERIMENTAL in warning for warning in plan.warnings)
    return cell(outcome="experimental" if doubtful else "yes", warnings=plan.warnings)
