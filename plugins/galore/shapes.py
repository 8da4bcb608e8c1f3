"""Which side of a weight GaLore projects, and how many numbers that makes: arithmetic for the plan and the optimizer alike.

    weight m x n    proj_type     side     projector    projected gradient
    m >= n          std, right    right    r x n        m x r
    m < n           std, left     left     m x r        r x n

`reverse_std` takes the long side where `std` takes the short one. The leading dimension of a weight with three (fused
experts) counts matrices, each of which is projected on its own.
"""

from __future__ import annotations

import math
from typing import Literal

ProjType = Literal["std", "reverse_std", "left", "right"]


def is_left(shape: tuple[int, ...], proj_type: ProjType) -> bool:
    """Whether the rows of a weight are projected, else its columns."""
    if proj_type in ("left", "right"):
        return proj_type == "left"
    rows, columns = shape[-2:]
    return (rows < columns) == (proj_type == "std")


def fits(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a weight can be projected with a gain: one or a stack of matrices, both sides longer than the rank."""
    return len(shape) in (2, 3) and rank < min(shape[-2:])


def projected_numbers(shape: tuple[int, ...], rank: int, proj_type: ProjType) -> int:
    """Numbers in the projected gradient, and so in each moment."""
    rows, columns = shape[-2:]
    return math.prod(shape[:-2]) * rank * (columns if is_left(shape, proj_type) else rows)


def projector_numbers(shape: tuple[int, ...], rank: int, proj_type: ProjType) -> int:
    """Numbers in the projector."""
    rows, columns = shape[-2:]
    return math.prod(shape[:-2]) * rank * (rows if is_left(shape, proj_type) else columns)
