"""The rows of files, whatever their type, as one source: in the order of the files, each row with its own file and line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from luthier.core.config.schema import SourceConfig
from luthier.core.data.sources import json_rows, remote, tables, texts
from luthier.core.data.sources.files import TABLES, DataFile
from luthier.core.data.sources.locate import find
from luthier.core.data.sources.opening import BrokenArchive, open_stored
from luthier.core.data.sources.row import RowSource, Skip, SourceRow
from luthier.core.errors import DataError
from luthier.core.frozen import canonical_json

READERS: Final[dict[str, Callable[[DataFile, Skip], Iterator[SourceRow]]]] = {
    "json": json_rows.rows_of_list,
    "jsonl": json_rows.rows_of_lines,
    "csv": texts.rows_of_cells,
    "tsv": texts.rows_of_cells,
    "text": texts.rows_of_text,
    "parquet": tables.rows_of_parquet,
    "arrow": tables.rows_of_arrow,
}
COUNTERS: Final[dict[str, Callable[[DataFile], int]]] = {
    "jsonl": json_rows.count_lines,
    "text": json_rows.count_lines,
    "parquet": tables.count_parquet,
    "arrow": tables.count_arrow,
}


class FileRows(RowSource):
    """A file, a folder, a glob or a URL. Files are found at once, and read when rows are asked for."""

    def __init__(self, source: SourceConfig, base: Path | None = None, *, streaming: bool = False) -> None:
        found = find(source, base)
        self.files, self.name = found.files, found.name
        self._limit, self._streaming = source.rows, streaming

    def rows(self, start: int = 0) -> Iterator[SourceRow]:
        skip = Skip(start)
        everything = (row for file in self.files for row in _read(file, skip))
        return islice(everything, None if self._limit is None else max(0, self._limit - start))

    def count(self) -> int | None:
        if any(not self._countable(file) for file in self.files):
            return None
        total = sum(_counted(file) for file in self.files)
        return total if self._limit is None else min(total, self._limit)

    def fingerprint(self) -> str:
        files = []
        for file in self.files:
            encoding = "" if file.type in TABLES else file.encoding
            files.append(
                {"type": file.type, "compression": file.compression, "encoding": encoding, "content": _digest(file)}
            )
        content = canonical_json({"files": files, "rows": self._limit})
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def _countable(self, file: DataFile) -> bool:
        """A Parquet file says how many rows it has; others must be read, which a stream and the network are not for."""
        return (file.type == "parquet" and not file.compression) or not (file.is_remote or self._streaming)


def _read(file: DataFile, skip: Skip) -> Iterator[SourceRow]:
    """The rows of one file; raises DataError, with the row, where the reading breaks off, and for a file without rows."""
    before, last = skip.left, 0
    try:
        for row in READERS[file.type](file, skip):
            last = row.line
            yield row
    except BrokenArchive as error:
        after = f"after line {last}" if last else "before its first row"
        raise DataError(
            f"the archive is damaged or cut off {after}: {error}",
            where=f"{file.shown}:{last + 1}",
            fix="copy or compress it again",
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=file.shown, fix="check the file") from error
    if not last and skip.left == before:
        raise DataError("holds no rows", where=file.shown, fix="check that the file was written completely")


def _counted(file: DataFile) -> int:
    counter = COUNTERS.get(file.type)
    try:
        return counter(file) if counter else sum(1 for _ in READERS[file.type](file, Skip()))
    except BrokenArchive:
        return sum(1 for _ in _read(file, Skip()))  # raises, with the row
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=file.shown, fix="check the file") from error


def _digest(file: DataFile) -> str:
    if file.is_remote and (known := remote.digest_of(file.path)):
        return known
    try:
        with open_stored(file) as stream:
            state = hashlib.blake2b(digest_size=32)
            while piece := stream.read(1 << 20):
                state.update(piece)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=file.shown, fix="check the file") from error
    return state.hexdigest()
