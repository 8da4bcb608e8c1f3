"""Documents into bins of a fixed number of tokens: best fit decreasing.

    the longest first, each into the fullest bin that still has room for it, or else into a new one

It needs at most 11/9 of the fewest bins possible, and a little (Johnson 1973, Near-optimal bin packing algorithms). Lengths
are small integers, so no tree is needed: one bit of a number stands for each free capacity that some bin has, and the best
fit is the lowest bit at or above the length. A row costs one shift of `capacity` bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def pack(lengths: Rows, capacity: int) -> list[Rows]:
    """Bins of row numbers, int64, each of at most `capacity` tokens; every row in exactly one.

    `lengths` (rows,) in tokens, at least 1. A longer row is a bin of its own. Rows of a bin go from long to short; the same
    lengths give the same bins.
    """
    order = np.argsort(-lengths, kind="stable")
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free tokens -> the bins that have so many, the last opened or filled at the end
    rooms = 0  # bit n is set where `with_room[n]` has a bin
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            here = with_room[room]
            place = here.pop()
            if not here:
                rooms ^= 1 << room
            bins[place].append(row)
        else:
            room, place = max(capacity, length), len(bins)
            bins.append([row])
        left = room - length
        if left:
            with_room.setdefault(left, []).append(place)
            rooms |= 1 << left
    return [np.array(one, dtype=np.int64) for one in bins]
