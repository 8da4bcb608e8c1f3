"""The proof: what the matrix calls possible trains, and moves nothing but what it declared; the rest never starts.

`make test` runs a sample in which every adapter, quantisation and optimizer occurs; `make test-all` every combination.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.config.validate import parse_options
from luthier.core.engine import execute
from luthier.core.errors import PlanRefused
from luthier.core.resolve.matrix import Cell

from .conftest import SMALL, Watched, cell_config, installed, matrix_of, watching


def sample(cells: Sequence[Cell], extra: int, seed: int = 0) -> list[Cell]:
    """Few cells in which every pair of (axis, value) of the possible ones occurs, and `extra` more at random."""
    order = list(cells)
    random.Random(seed).shuffle(order)

    def values(cell: Cell) -> set[tuple[str, str]]:
        return {("adapter", cell.adapter), ("quantisation", cell.quantisation), ("optimizer", cell.optimizer)}

    wanted = set().union(*(values(cell) for cell in cells))
    chosen: list[Cell] = []
    while wanted:
        best = max(order, key=lambda cell: len(values(cell) & wanted))
        chosen.append(best)
        order.remove(best)
        wanted -= values(best)
    return chosen + order[:extra]


def check(cell: Cell, folder: Path, work: Path, precision: str = "fp32") -> None:
    """Three steps: the loss is a number, and exactly what the adapter's own formula counts was free to move."""
    catalog, environment = installed()
    watched = Watched()
    config = cell_config(cell, folder, work, precision)
    spied = watching(catalog, watched)
    plan = luthier.plan(config, catalog=spied, environment=environment)
    results = execute(plan, spied, environment=environment)
    shutil.rmtree(config["output"])
    what = f"{cell.adapter} x {cell.quantisation} x {cell.optimizer}"
    assert results["steps"] == 3, what
    assert 0 < results["train_loss"] < 20, what
    assert watched.changed, f"{what}: nothing was trained"
    assert watched.changed <= watched.declared, f"{what}: {sorted(watched.changed - watched.declared)[:3]}"
    assert not watched.buffers, f"{what}: buffers changed: {sorted(watched.buffers)[:3]}"
    adapter = catalog.method("adapter", cell.adapter)
    options = parse_options(adapter.config, plan.step("adapter").config, where="adapter")
    assert watched.numbers == adapter.memory(plan.profile, options).trainable, what
    if "base.frozen" in plan.traits:
        from transformers import AutoModelForCausalLM

        plain = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
        moved = {name.removeprefix("base_model.model.") for name in watched.changed} & set(plain)
        assert not moved, f"{what}: {sorted(moved)[:3]}"


@pytest.mark.parametrize("model_type", SMALL)
def test_a_sample_of_what_is_possible_runs(model_type: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    matrix = matrix_of(tiny_models[model_type])
    cells = sample([cell for cell in matrix.cells if cell.possible], extra=3)
    assert {cell.adapter for cell in cells} >= {"lora", "full"}
    for cell in cells:
        check(cell, tiny_models[model_type], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model_type", SMALL)
def test_everything_that_is_possible_runs(
    model_type: str, precision: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    failed = []
    for cell in matrix_of(tiny_models[model_type]).cells:
        if cell.possible:
            try:
                check(cell, tiny_models[model_type], tmp_path, precision)
            except Exception as error:
                failed.append(f"{cell.adapter} x {cell.quantisation} x {cell.optimizer}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("model_type", SMALL)
def test_what_is_refused_does_not_start(model_type: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    matrix = matrix_of(tiny_models[model_type])
    check_refused(sample([cell for cell in matrix.cells if not cell.possible], extra=2), tiny_models[model_type], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SMALL)
def test_nothing_that_is_refused_starts(model_type: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    refused = [cell for cell in matrix_of(tiny_models[model_type]).cells if not cell.possible]
    check_refused(refused, tiny_models[model_type], tmp_path)


def check_refused(cells: Sequence[Cell], folder: Path, tmp_path: Path) -> None:
    """Asked for in earnest, a refused combination raises the same problems and leaves no folder."""
    for cell in cells:
        config: dict[str, Any] = cell_config(cell, folder, tmp_path)
        with pytest.raises(PlanRefused) as caught:
            luthier.train(config)
        assert {problem.reason for problem in caught.value.problems} >= {problem.reason for problem in cell.problems}
        assert not Path(config["output"]).exists()
