"""The matrix of combinations, on made-up methods: its axes come from traits, its cells are what `resolve` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.core.contracts import Support
from luthier.core.errors import PlanRefused
from luthier.core.options import option
from luthier.core.resolve.matrix import Matrix, combination_config, combinations, describe, footnotes, reasons
from luthier.core.traits import any_of


@dataclass(frozen=True, kw_only=True)
class KindOptions:
    kind: str = option(doc="Which kind; there is no default.")


def matrix_of(shop: Any) -> Matrix:
    return combinations(model=shop.model, profile=shop.profile, environment=shop.environment, catalog=shop.catalog)


def quantising(shop: Any) -> Any:
    shop.add("patches", "bits", provides=frozenset({"weights.quantized"}))
    shop.add("patches", "harmless", provides=frozenset({"made-up.fact"}))
    shop.add("adapter", "dense", conflicts=frozenset({"weights.quantized"}))
    shop.add("optimizer", "matrix", requires=(any_of("params.full_rank"),))
    return shop


def test_the_axes_are_every_adapter_optimizer_and_quantising_patch(shop: Any) -> None:
    matrix = matrix_of(quantising(shop))
    assert matrix.adapters == ("thin", "whole", "dense")
    assert matrix.optimizers == ("climb", "matrix")
    assert matrix.quantisations == ("none", "bits"), "a patch that does not quantise is no axis"
    assert len(matrix.cells) == 3 * 2 * 2


def test_every_cell_is_what_resolve_says(shop: Any) -> None:
    matrix = matrix_of(quantising(shop))
    outcomes = {(cell.adapter, cell.quantisation, cell.optimizer): cell.possible for cell in matrix.cells}
    for (adapter, quantisation, optimizer), possible in outcomes.items():
        config = combination_config(adapter, quantisation, optimizer, shop.catalog)
        try:
            shop.resolve(config)
        except PlanRefused:
            assert not possible
        else:
            assert possible
    assert outcomes["dense", "none", "climb"]
    assert not outcomes["dense", "bits", "climb"]
    assert not outcomes["thin", "none", "matrix"]
    assert outcomes["whole", "bits", "matrix"]


def test_a_cell_keeps_every_reason(shop: Any) -> None:
    cell = matrix_of(quantising(shop)).cell("dense", "bits", "matrix")
    assert len(cell.problems) == 2
    assert any("weights.quantized" in reason for reason in reasons(cell))
    assert any("params.full_rank" in reason for reason in reasons(cell))


def test_what_only_lacks_a_package_is_missing_and_an_experiment_is_possible(shop: Any) -> None:
    shop.add("optimizer", "absent", packages=("no-such-package>=1",))
    shop.add("optimizer", "daring", supports=lambda profile, environment, config: Support.experimental("it is young"))
    matrix = matrix_of(shop)
    assert matrix.cell("thin", "none", "absent").outcome == "missing"
    daring = matrix.cell("thin", "none", "daring")
    assert daring.outcome == "experimental"
    assert daring.possible
    assert any("it is young" in warning for warning in daring.warnings)


def test_a_method_with_required_options_stands_with_its_example(shop: Any) -> None:
    shop.add("adapter", "kinds", config=KindOptions, example={"kind": "first"})
    assert matrix_of(shop).cell("kinds", "none", "climb").possible
    config = combination_config("kinds", "none", "climb", shop.catalog)
    assert dict(config.adapter.options) == {"kind": "first"}


def test_equal_reasons_share_a_number(shop: Any) -> None:
    matrix = matrix_of(quantising(shop))
    numbers = footnotes(matrix.cells)
    assert sorted(numbers.values()) == list(range(1, len(numbers) + 1))
    said = {reason for cell in matrix.cells if not cell.possible for reason in reasons(cell)}
    assert set(numbers) == said
    assert len(said) == 2, "dense does not bear bits, matrix needs full rank: whatever else is in the cell"


def test_the_description_is_plain_data(shop: Any) -> None:
    import json

    described = list(describe(matrix_of(quantising(shop))))
    assert json.loads(json.dumps(described)) == described
    assert {cell["outcome"] for cell in described} == {"yes", "no"}
    assert all(bool(cell["problems"]) == (cell["outcome"] == "no") for cell in described)
