"""Tokenised rows as a data set: views over stores, so that sampling, mixing and holding out copy no token."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt

from luthier.core.data.store import Bools, Ints, TokenStore

IGNORED: Final = -100


class Example(TypedDict):
    """One sequence: `input_ids` and `labels`, int64 of shape (T,); labels are -100 where nothing is learned."""

    input_ids: Ints
    labels: Ints


class Examples:
    """A sequence of `Example`, usable as a map-style dataset.

    `stores` hold the tokens; `order`, int64 (rows,), says which of their rows these are, counted through all stores, and
    may name a row twice; None is every row once. Where a row has two sequences (`per_row` is 2, for preferences), [2 * i] is
    the chosen and [2 * i + 1] the rejected one of row i. Raises ValueError for stores that differ in that.
    """

    def __init__(self, stores: Sequence[TokenStore], order: Ints | None = None) -> None:
        self.stores = tuple(stores)
        kinds = {store.per_row for store in self.stores}
        if len(kinds) > 1:
            raise ValueError("rows of one sequence and rows of two cannot be mixed")
        self.per_row = kinds.pop() if kinds else 1
        self._begins = [0]
        for store in self.stores:
            self._begins.append(self._begins[-1] + len(store))
        self.order = np.arange(self._begins[-1], dtype=np.int64) if order is None else order

    def __len__(self) -> int:
        return len(self.order) * self.per_row

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        row, which = divmod(index % len(self), self.per_row)
        store, place = self._place(row)
        at = place * self.per_row + which
        begin, end = (int(store.ends[at - 1]) if at else 0), int(store.ends[at])
        ids = store.ids[begin:end].astype(np.int64)
        return {"input_ids": ids, "labels": np.where(store.trained[begin:end], ids, IGNORED)}

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def beside(self, row: int) -> dict[str, Any]:
        """What row number `row` has beside its tokens: of a prompt its `messages`, and `tools` and `reference` where it has
        them; nothing of any other kind."""
        store, place = self._place(row)
        text = store.beside_of(place)
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def reference(self, row: int) -> str | None:
        """What answers to a prompt are judged by: a text as it is, anything else as JSON; None where the row has none."""
        found = self.beside(row).get("reference")
        return found if found is None or isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    @property
    def rows(self) -> int:
        """The number of rows: `len()` where a row is one sequence."""
        return len(self.order)

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each sequence, int64 (sequences,)."""
        parts = [store.lengths for store in self.stores]
        return np.concatenate([np.empty(0, np.int64), *parts])[self._sequences]

    @cached_property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def trained_tokens(self) -> int:
        learned = np.concatenate([np.empty(0, np.int32), *(store.learned for store in self.stores)])
        return int(learned[self._sequences].sum(dtype=np.int64))

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64]:
        """64 bits of each row's content, uint64 (rows,)."""
        return np.concatenate([np.empty(0, np.uint64), *(store.keys for store in self.stores)])[self.order]

    @cached_property
    def values(self) -> npt.NDArray[np.float32]:
        """Each row's value, float32 (rows,): 1 or 0 for good or bad, the margin of a preference; NaN where it has none."""
        return np.concatenate([np.empty(0, np.float32), *(store.values for store in self.stores)])[self.order]

    @cached_property
    def digest(self) -> str:
        """Hex over the content of the stores and the order."""
        digest = hashlib.sha256()
        for store in self.stores:
            digest.update(bytes.fromhex(store.digest))
        digest.update(np.ascontiguousarray(self.order, dtype="<i8").tobytes())
        return digest.hexdigest()

    def where(self, rows: Bools) -> Examples:
        """The rows whose entry in `rows`, bool (rows,), is true, in the same order."""
        return Examples(self.stores, self.order[rows])

    def _place(self, row: int) -> tuple[TokenStore, int]:
        place = int(self.order[row])
        number = bisect_right(self._begins, place) - 1
        return self.stores[number], place - self._begins[number]

    @property
    def _sequences(self) -> Ints:
        if self.per_row == 1:
            return self.order
        return (self.order[:, None] * self.per_row + np.arange(self.per_row)).reshape(-1)
