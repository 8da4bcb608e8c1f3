"""Tokenised rows of one source in flat arrays, in memory or as files that are mapped into it.

    ids.npy      int32   (tokens,)     the sequences' tokens, one sequence after another
    trained.npy  bool    (tokens,)     whether the token is learned
    ends.npy     int64   (sequences,)  where each sequence ends in `ids`
    learned.npy  int32   (sequences,)  how many of its tokens are learned
    keys.npy     uint64  (rows,)       64 bits of the row's content: rows that say the same have the same key
    values.npy   float32 (rows,)       the row's value (a label, a margin), NaN where it has none
    beside.npy       uint8 (bytes,)    what a row has beside its tokens, JSON in UTF-8, one row after another
    beside_ends.npy  int64 (rows,)     where each row's ends in `beside`; (0,) where no row has anything

A row is one sequence, or two (`per_row`): of a preference the chosen one and the rejected one. The files are written by
appending, so that a store may be far larger than the memory, and read by mapping, so that only what is used is loaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Final, Self, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

DTYPES: Final = {
    "ids": "<i4",
    "trained": "|b1",
    "ends": "<i8",
    "learned": "<i4",
    "keys": "<u8",
    "values": "<f4",
    "beside": "|u1",
    "beside_ends": "<i8",
}
_HEADER: Final = 128
_MAGIC: Final = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True, eq=False)
class Chunk:
    """A few rows as they come from tokenising: the arrays of a store, with lengths in place of where each one ends."""

    ids: Array
    trained: Array
    lengths: Array
    learned: Array
    keys: Array
    values: Array
    beside: Array
    beside_lengths: Array

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        trained: bytes | bytearray,
        lengths: Sequence[int],
        keys: Sequence[int],
        values: Sequence[float | None],
        beside: Sequence[bytes] = (),
    ) -> Chunk:
        """From Python's own types; `beside` has an item for every row, or none.

        Raises ValueError where `trained` does not cover every token, or `beside` not every row.
        """
        if len(ids) != len(trained):
            raise ValueError(f"{len(ids)} tokens, {len(trained)} marks")
        if beside and len(beside) != len(keys):
            raise ValueError(f"{len(keys)} rows, {len(beside)} of them with something beside")
        return cls(
            ids=np.asarray(ids, dtype=np.int32),
            trained=np.frombuffer(bytes(trained), dtype=np.bool_),
            lengths=np.asarray(lengths, dtype=np.int64),
            learned=np.asarray(
                [trained.count(1, end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)],
                dtype=np.int32,
            ),
            keys=np.asarray(keys, dtype=np.uint64),
            values=np.asarray([np.nan if value is None else value for value in values], dtype=np.float32),
            beside=np.frombuffer(b"".join(beside), dtype=np.uint8),
            beside_lengths=np.asarray([len(one) for one in beside], dtype=np.int64),
        )


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The arrays of the module's docstring; `digest` is hex over their content."""

    ids: npt.NDArray[np.int32]
    trained: Bools
    ends: Ints
    learned: npt.NDArray[np.int32]
    keys: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32]
    beside: npt.NDArray[np.uint8]
    beside_ends: Ints
    digest: str
    per_row: int = 1

    @classmethod
    def in_memory(cls, chunks: Iterable[Chunk], per_row: int = 1) -> TokenStore:
        """All chunks put together."""
        sink = _Memory()
        digest = _fill(sink, chunks)
        return cls(**sink.arrays(), digest=digest, per_row=per_row)

    @classmethod
    def open(cls, folder: Path, digest: str, per_row: int = 1) -> TokenStore:
        """Map the files of `folder`; raises OSError or ValueError where one cannot be read."""
        arrays = {name: _mapped(folder / f"{name}.npy") for name in DTYPES}
        return cls(**arrays, digest=digest, per_row=per_row)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each sequence, int64 (sequences,)."""
        return np.diff(self.ends, prepend=0)

    def beside_of(self, row: int) -> bytes:
        """What a row has beside its tokens; nothing where it has nothing."""
        if not len(self.beside_ends):
            return b""
        begin = int(self.beside_ends[row - 1]) if row else 0
        return self.beside[begin : int(self.beside_ends[row])].tobytes()


def write_store(folder: Path, chunks: Iterable[Chunk]) -> tuple[str, dict[str, int]]:
    """Write the files of a store into `folder`; returns its digest and the bytes of each file.

    Holds one chunk at a time. Raises OSError, and whatever the chunks raise; then the folder is to be thrown away.
    """
    with _Files(folder) as sink:
        digest = _fill(sink, chunks)
    return digest, {name: (folder / f"{name}.npy").stat().st_size for name in DTYPES}


def _fill(sink: _Memory | _Files, chunks: Iterable[Chunk]) -> str:
    hashes = {name: hashlib.sha256() for name in DTYPES}
    tokens = beside = 0
    for chunk in chunks:
        parts = {
            "ids": chunk.ids,
            "trained": chunk.trained,
            "ends": tokens + np.cumsum(chunk.lengths),
            "learned": chunk.learned,
            "keys": chunk.keys,
            "values": chunk.values,
            "beside": chunk.beside,
            "beside_ends": beside + np.cumsum(chunk.beside_lengths),
        }
        tokens += len(chunk.ids)
        beside += len(chunk.beside)
        for name, values in parts.items():
            data = np.ascontiguousarray(values, dtype=DTYPES[name])
            hashes[name].update(data.view(np.uint8).data)
            sink.append(name, data)
    return hashlib.sha256(b"".join(hashes[name].digest() for name in DTYPES)).hexdigest()


class _Memory:
    def __init__(self) -> None:
        self._parts: dict[str, list[Array]] = {name: [np.empty(0, dtype)] for name, dtype in DTYPES.items()}

    def append(self, name: str, data: Array) -> None:
        self._parts[name].append(data)

    def arrays(self) -> dict[str, Any]:
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


class _Files:
    """.npy files that grow: the header has room for any length, and is written anew at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._counts = dict.fromkeys(DTYPES, 0)

    def __enter__(self) -> Self:
        for name, dtype in DTYPES.items():
            file = self._stack.enter_context((self._folder / f"{name}.npy").open("wb"))
            file.write(_header(dtype, 0))
            self._files[name] = file
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            if exception == (None, None, None):
                for name, file in self._files.items():
                    file.seek(0)
                    file.write(_header(DTYPES[name], self._counts[name]))

    def append(self, name: str, data: Array) -> None:
        self._files[name].write(data.view(np.uint8).data)
        self._counts[name] += len(data)


def _header(dtype: str, count: int) -> bytes:
    """The header of a one-dimensional .npy file, version 1.0, always of the same size."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({count},), }}".encode()
    size = _HEADER - len(_MAGIC) - 2
    return _MAGIC + size.to_bytes(2, "little") + text.ljust(size - 1) + b"\n"


def _mapped(path: Path) -> Array:
    if os.path.getsize(path) <= _HEADER:
        return np.asarray(np.load(path, allow_pickle=False))  # nothing cannot be mapped
    # asarray takes the mapping's own class off, which makes each slice several times slower.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
