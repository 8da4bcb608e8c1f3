"""Which rows are held out: decided by what a row says and by the seed, never by where it stands.

Reordering the file, or running again, holds out the same rows; a row that occurs twice is never on both sides.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from luthier.core.data.conversation import Messages

Keys: TypeAlias = npt.NDArray[np.uint64]


def content_key(messages: Messages, seed: int) -> int:
    """64 bits over the seed and the row's content."""
    text = json.dumps([seed, messages], sort_keys=True)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def rows_to_hold_out(part: float | int, rows: int) -> int:
    """The number of rows that `data.eval` asks for: an integer is a number, anything else a part (at least one row)."""
    if isinstance(part, int) or part == 0:
        return int(part)
    return max(1, round(part * rows))


def hold_out(keys: Keys, wanted: int) -> npt.NDArray[np.bool_]:
    """Bool (rows,): `wanted` rows of the smallest keys. Rows of one key stay together, so it may be fewer, never more."""
    chosen: list[np.uint64] = []
    held = 0
    values, counts = np.unique(keys, return_counts=True)
    for value, count in zip(values, counts, strict=True):
        if held == wanted:
            break
        if held + int(count) <= wanted:
            chosen.append(value)
            held += int(count)
    return np.isin(keys, np.array(chosen, dtype=np.uint64))
