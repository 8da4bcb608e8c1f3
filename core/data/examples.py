"""Tokenised rows in three flat arrays: five bytes a token, however many rows there are."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

IGNORED: Final = -100
Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]


class Example(TypedDict):
    """One row: `input_ids` and `labels`, int64 of shape (T,); labels are -100 where nothing is learned."""

    input_ids: Ints
    labels: Ints


@dataclass(frozen=True, eq=False)
class Examples:
    """A sequence of `Example`, usable as a map-style dataset.

    ids      int32 (tokens,), the rows one after another
    trained  bool (tokens,), whether the token is a label
    ends     int64 (rows,), where each row ends in `ids`
    """

    ids: npt.NDArray[np.int32]
    trained: Bools
    ends: Ints

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = index % len(self)
        begin, end = (int(self.ends[row - 1]) if row else 0), int(self.ends[row])
        ids = self.ids[begin:end].astype(np.int64)
        return {"input_ids": ids, "labels": np.where(self.trained[begin:end], ids, IGNORED)}

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> Ints:
        """Tokens of each row, int64 (rows,)."""
        return np.diff(self.ends, prepend=0)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def trained_tokens(self) -> int:
        return int(self.trained.sum())

    def where(self, rows: Bools) -> Examples:
        """The rows whose entry in `rows`, bool (rows,), is true, in the same order."""
        lengths = self.lengths
        tokens: Any = np.repeat(rows, lengths)
        return Examples(self.ids[tokens], self.trained[tokens], np.cumsum(lengths[rows]))


class ExamplesBuilder:
    """Collects rows without a Python object for each token."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._trained = bytearray()
        self._ends = array("q")

    def add(self, ids: Sequence[int], trained: Sequence[bool] | bytearray) -> None:
        """One row; both of the same length."""
        if len(ids) != len(trained):
            raise ValueError(f"{len(ids)} tokens, {len(trained)} marks")
        self._ids.extend(ids)
        self._trained.extend(trained)
        self._ends.append(len(self._ids))

    def finish(self) -> Examples:
        return Examples(
            np.array(self._ids, dtype=np.int32),
            np.frombuffer(bytes(self._trained), dtype=np.bool_),
            np.array(self._ends, dtype=np.int64),
        )
