"""Which rows are held out: decided by what a row says and by the seed, never by where it stands.

Reordering the file, running again, or tokenising with more processes holds out the same rows; a row that occurs twice is
never on both sides. The content's 64 bits are kept with the tokens; the seed is mixed into them afterwards, so that another
seed needs no other tokens.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from luthier.core.errors import DataError
from luthier.core.extensions import Row

Keys: TypeAlias = npt.NDArray[np.uint64]


def content_key(canonical: Row) -> int:
    """64 bits over a canonical row; the order of its keys does not matter."""
    text = json.dumps(canonical, sort_keys=True, default=str)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def mix_keys(keys: Keys, seed: int) -> Keys:
    """Keys that depend on the seed as well, uint64 (rows,): the finalizer of splitmix64, which maps no two to one."""
    mixed = keys + np.uint64((2 * seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def rows_to_hold_out(part: float | int, rows: int) -> int:
    """The number of rows that `data.eval` asks for: an integer is a number, anything else a part (at least one row).

    Raises DataError where none would be left to train on.
    """
    wanted = int(part) if isinstance(part, int) or part == 0 else max(1, round(part * rows))
    if wanted >= rows:
        raise DataError(
            f"holding out {wanted} of {rows} rows leaves none to train on",
            where="data.eval",
            fix="hold out fewer rows, or give evaluation sources of their own",
        )
    return wanted


def hold_out(keys: Keys, wanted: int) -> npt.NDArray[np.bool_]:
    """Bool (rows,): `wanted` rows of the smallest keys. Rows of one key stay together, so it may be fewer, never more."""
    values, counts = np.unique(keys, return_counts=True)
    whole = int(np.searchsorted(np.cumsum(counts), wanted, side="right"))
    chosen = np.zeros(len(values), dtype=bool)
    chosen[:whole] = True
    left = wanted - int(counts[:whole].sum())
    # The next group is too large for what is left; a later one may fit.
    for place in np.flatnonzero(counts[whole:] <= left) + whole:
        if not left:
            break
        if counts[place] <= left:
            chosen[place] = True
            left -= int(counts[place])
    return np.isin(keys, values[chosen])
