"""Projectors: orthonormal bases of the main directions of a gradient, and the way into the small space and back.

    gradient G (m, n)     left      P (m, r), the first r left singular vectors     small = P^T G    back = P small
                          right     P (r, n), the first r right singular vectors    small = G P^T    back = small P

Section 3 of arXiv:2403.03507. Leading dimensions are batched: every matrix of a stack has a projector of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import torch
from torch import Tensor

from luthier.core.errors import LuthierError

Svd = Literal["exact", "randomized"]

# Halko, Martinsson and Tropp 2011 (arXiv:0909.4061): 5 to 10 more directions than are wanted, and two power iterations for
# spectra that fall slowly, as those of gradients do.
OVERSAMPLING: Final = 10
POWER_ITERATIONS: Final = 2


def find_projector(gradient: Tensor, rank: int, *, left: bool, svd: Svd, seed: int) -> Tensor:
    """Of the rows or columns of a gradient; computed in float32, returned in `state_dtype` with memory of its own.

    `seed` starts the randomised decomposition and nothing else: the same gradient and seed give the same bits, and the
    random generators are left as they were. Raises LuthierError where the gradient is not finite.
    """
    # The signs of singular vectors are the library's choice: in one format always, they are galore-torch's.
    matrix = gradient.float()
    try:
        if svd == "exact":
            rows, _, columns = torch.linalg.svd(matrix, full_matrices=False)
        else:
            count = min(rank + OVERSAMPLING, *matrix.shape[-2:])
            with _seeded(matrix.device, seed):
                rows, _, transposed = torch.svd_lowrank(matrix, q=count, niter=POWER_ITERATIONS)
            columns = transposed.mH
    except torch.linalg.LinAlgError as error:
        raise LuthierError(
            f"a gradient of shape {tuple(gradient.shape)} has no singular value decomposition: {str(error).splitlines()[0]}",
            where="optimizer: galore",
            fix="lower `optimizer.lr`, or look for rows whose loss is not finite",
        ) from error
    first = rows[..., :rank] if left else columns[..., :rank, :]
    # A slice would keep the whole factor alive: 18 times as much, at rank 32 of 576.
    return first.to(state_dtype(gradient)).clone(memory_format=torch.contiguous_format)


def state_dtype(weight: Tensor) -> torch.dtype:
    """The format of projectors and moments: float32, or the weight's own where that is wider."""
    return torch.promote_types(weight.dtype, torch.float32)


def project(gradient: Tensor, projector: Tensor, *, left: bool) -> Tensor:
    """The gradient in the small space, in `state_dtype`; the product is taken in the gradient's own format."""
    basis = projector.to(gradient.dtype)
    small = basis.mT @ gradient if left else gradient @ basis.mT
    return small.to(state_dtype(gradient))


def add_back_(weight: Tensor, small: Tensor, projector: Tensor, *, left: bool, alpha: float, beta: float) -> None:
    """weight <- beta weight + alpha (`small` back in the weight's space), without a tensor of that size beside it."""
    first, second = (projector, small) if left else (small, projector)
    add = weight.addmm_ if weight.ndim == 2 else weight.baddbmm_
    add(first.to(weight.dtype), second.to(weight.dtype), alpha=alpha, beta=beta)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """`svd_lowrank` draws from the device's own generator and takes no other: seeded within the block, then put back."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield
