"""The page of combinations: `matrix MODEL_TYPE` is what `luthier methods --matrix` says of a model type's default shape,
`stages MODEL_TYPE` how every stage goes with every adapter.

Asked for a CPU and for a GPU, with every package that a method names installed, so that the page says what combines and not
what the machine that writes it lacks. Where only the GPU can do it, the table says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from blocks import table
from methods import own_catalog
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from luthier.core.catalog import Catalog
from luthier.core.contracts import TrainingStage
from luthier.core.environment import Environment
from luthier.core.errors import PlanRefused
from luthier.core.frozen import FrozenDict
from luthier.core.plan import ModelReference, SourceSummary
from luthier.core.profile import ArchitectureProfile
from luthier.core.resolve import resolve
from luthier.core.resolve.matrix import (
    NO_QUANTISATION,
    Cell,
    Matrix,
    combination_config,
    combinations,
    example_of,
    ordered,
    reasons,
)

PLURALS = {"adapter": "adapters", "quantisation": "quantised weights", "optimizer": "optimizers"}


@cache
def profile_of(model_type: str) -> ArchitectureProfile:
    """The profile of a model type's default configuration."""
    from transformers import AutoConfig

    from luthier.registry.detect import detect

    return detect(AutoConfig.for_model(model_type))


def machine(device: str, catalog: Catalog) -> Environment:
    """A CPU or an H100 on which no package is missing."""
    wanted = [Requirement(text).name for _, offer in catalog.offers() for text in offer.value.packages]
    return Environment(
        python="3.11",
        platform="Linux",
        cpu="any",
        cores=8,
        memory=64 * 2**30,
        packages=FrozenDict({canonicalize_name(name): "999" for name in wanted}),
        **({"device": "cuda", "device_name": "H100", "device_count": 1, "capability": (9, 0)} if device == "cuda" else {}),  # type: ignore[arg-type]
    )


def partners(slot: str, name: str) -> str:
    """What a method on one of the axes combines with, on a Llama, on some machine: by name, or all but a few.

    Empty for any other method: what it combines with is in the other rows of its declaration.
    """
    whole = matrix_on("cuda", "llama")
    axis = {"adapter": "adapter", "optimizer": "optimizer", "patches": "quantisation"}.get(slot, "")
    axes = {"adapter": whole.adapters, "quantisation": whole.quantisations[1:], "optimizer": whole.optimizers}
    if name not in axes.get(axis, ()):
        return ""
    mine = [cell for cell in whole.cells if getattr(cell, axis) == name and cell.possible]
    parts = []
    for other, names in axes.items():
        if other != axis:
            found = [one for one in names if any(getattr(cell, other) == one for cell in mine)]
            parts.append(f"{PLURALS[other]}: {_shortest(found, names)}")
    return "; ".join(parts) + " ([all](../combinations.md))"


def _shortest(found: Sequence[str], names: Sequence[str]) -> str:
    missing = [f"`{name}`" for name in names if name not in found]
    if not found:
        return "none"
    if len(missing) < len(found):
        return f"all but {', '.join(missing)}" if missing else "all"
    return ", ".join(f"`{name}`" for name in found)


@cache
def matrix_on(device: str, model_type: str) -> Matrix:
    catalog = own_catalog()
    return combinations(
        model=ModelReference(name=model_type, path=model_type, kind="folder"),
        profile=profile_of(model_type),
        environment=machine(device, catalog),
        catalog=catalog,
    )


def stages(page: Path, words: list[str]) -> str:
    """Every stage with every adapter, each with data of its kind: the reference that it gets, and the numbered reasons."""
    (model_type,) = words
    catalog = own_catalog()
    adapters = ordered("adapter", catalog)
    numbers: dict[str, int] = {}

    def cell(stage: str, adapter: str) -> str:
        method = catalog.method("stage", stage)
        assert isinstance(method, TrainingStage)
        source = SourceSummary(path="rows.jsonl", format="any", kind=method.data_kind, rows=1, why="")
        chosen = example_of("stage", stage, catalog)
        config = combination_config(adapter, NO_QUANTISATION, ordered("optimizer", catalog)[0], catalog, stage=chosen)
        try:
            plan = resolve(
                config,
                model=ModelReference(name=model_type, path=model_type, kind="folder"),
                profile=profile_of(model_type),
                environment=machine("cpu", catalog),
                catalog=catalog,
                data=(source,),
            )
        except PlanRefused as refused:
            why = dict.fromkeys(problem.reason for problem in refused.problems)
            return " ".join(str(numbers.setdefault(reason, len(numbers) + 1)) for reason in why)
        return plan.step("stage").reference or "yes"

    names = sorted(catalog.slot("stage"), key=lambda name: (-catalog.method("stage", name).priority, name))
    rows = [[f"`{stage}`", *(cell(stage, adapter) for adapter in adapters)] for stage in names]
    notes = "\n".join(f"{number}. {why}" for why, number in numbers.items())
    return table(["stage", *(f"`{name}`" for name in adapters)], rows) + (f"\n\nWhy not:\n\n{notes}" if notes else "")


def matrix(page: Path, words: list[str]) -> str:
    """Counts, one table for each quantisation, and the numbered reasons."""
    (model_type,) = words
    on_cpu, on_gpu = matrix_on("cpu", model_type), matrix_on("cuda", model_type)
    numbers: dict[str, int] = {}

    def mark(cell: Cell) -> str:
        if cell.possible:
            return "yes" if cell.outcome == "yes" else "exp."
        elsewhere = on_gpu.cell(cell.adapter, cell.quantisation, cell.optimizer)
        if elsewhere.possible:
            return "GPU" if elsewhere.outcome == "yes" else "GPU, exp."
        return " ".join(str(numbers.setdefault(reason, len(numbers) + 1)) for reason in reasons(cell))

    parts = []
    for quantisation in on_cpu.quantisations:
        rows = [
            [f"`{optimizer}`", *(mark(on_cpu.cell(adapter, quantisation, optimizer)) for adapter in on_cpu.adapters)]
            for optimizer in on_cpu.optimizers
        ]
        title = "Weights as they are" if quantisation == NO_QUANTISATION else f"`patches: [{quantisation}]`"
        parts.append(f"**{title}**\n\n" + table(["optimizer", *(f"`{name}`" for name in on_cpu.adapters)], rows))
    cpu, gpu = (sum(cell.possible for cell in one.cells) for one in (on_cpu, on_gpu))
    head = f"Of {len(on_cpu.cells)} combinations {cpu} run on a CPU and {gpu} on a GPU."
    notes = "\n".join(f"{number}. {why}" for why, number in numbers.items())
    return "\n\n".join([head, *parts, f"Why not:\n\n{notes}"])
