"""What bitsandbytes' AdamW keeps for a tensor, and the options of its 8-bit form: shared by `adamw_8bit` and `paged_adamw`.

    32 bits   two float32 moments                                        8 n bytes
    8 bits    two bytes, and two float32 scales per block of 256         2 n + 8 ceil(n / 256) bytes

Whatever the format of the parameter. Block-wise quantisation: Dettmers et al. 2022, arXiv:2110.02861.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from luthier.core.contracts import Matrix, StateSize
from luthier.core.optimizing import AdamOptions
from luthier.core.options import option

# 0.50 is the first release whose optimizers have kernels for the CPU.
REQUIREMENT: Final = "bitsandbytes>=0.50"
BLOCK: Final = 256
BYTES_32BIT: Final = 8.0
BYTES_8BIT: Final = 2 + 8 / BLOCK
EMBEDDINGS: Final = ("embed", "embed.position", "embed.extra")


@dataclass(frozen=True, kw_only=True)
class EightBitOptions(AdamOptions):
    """Options of AdamW with 8-bit state, with those of every optimizer."""

    min_8bit_size: int = option(4096, "Tensors of fewer numbers than this keep 32-bit state.", unit="numbers", ge=0)
    embeddings_32bit: bool = option(
        True,
        "Keep 32-bit state for embeddings, whose gradients are far from evenly spread over the rows (section 2.3 of the "
        "paper). False saves 6 bytes for each of their parameters.",
    )


def state_32bit(matrix: Matrix) -> StateSize:
    """Two float32 moments."""
    return StateSize(bytes=BYTES_32BIT * matrix.size)


def state_8bit(options: EightBitOptions) -> Callable[[Matrix], StateSize]:
    """The state of a tensor under these options: 8-bit where it is large enough and no embedding."""

    def state(matrix: Matrix) -> StateSize:
        if matrix.size < options.min_8bit_size or (options.embeddings_32bit and matrix.role in EMBEDDINGS):
            return state_32bit(matrix)
        return StateSize(bytes=2 * matrix.size + 8 * math.ceil(matrix.size / BLOCK))

    return state
