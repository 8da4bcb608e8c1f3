"""`galore`'s projectors: no hidden memory, near the best where they are randomised, the same from the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.plugins.galore.projection import find_projector


@pytest.mark.parametrize("svd", ["exact", "randomized"])
@pytest.mark.parametrize("left", [True, False])
def test_a_projector_has_no_hidden_memory(svd: Any, left: bool) -> None:
    """576 x 1536 at rank 64: 147 KB or 393 KB, where a slice of the decomposition keeps 1.3 MB or 3.5 MB."""
    found = find_projector(
        torch.randn(576, 1536, generator=torch.Generator().manual_seed(0)), 64, left=left, svd=svd, seed=0
    )
    assert tuple(found.shape) == ((576, 64) if left else (64, 1536))
    assert found.untyped_storage().nbytes() == 4 * 64 * (576 if left else 1536)


def with_spectrum(rows: int, columns: int, values: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=draw, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=draw, dtype=torch.float64)).Q
    return (left * values) @ right.mT


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_a_randomised_projector_loses_hardly_more_than_the_best(left: bool, decay: float) -> None:
    """Nothing of rank r loses less than the tail of the spectrum (Eckart and Young); this one at most 1% more."""
    values = torch.arange(1, 101, dtype=torch.float64) ** -decay
    matrix = with_spectrum(160, 120, values)
    basis = find_projector(matrix, 16, left=left, svd="randomized", seed=1)
    identity = basis.mT @ basis if left else basis @ basis.mT
    assert (identity - torch.eye(16)).abs().max() < 1e-5
    kept = basis @ (basis.mT @ matrix) if left else (matrix @ basis.mT) @ basis
    lost, least = (matrix - kept).norm(), values[16:].norm()
    assert least * (1 - 1e-6) <= lost <= 1.01 * least


def test_a_randomised_projector_depends_on_its_seed_alone() -> None:
    matrix = torch.randn(2, 60, 40, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = find_projector(matrix, 4, left=True, svd="randomized", seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(find_projector(matrix, 4, left=True, svd="randomized", seed=7), first)
    assert not torch.equal(find_projector(matrix, 4, left=True, svd="randomized", seed=8), first)
