"""Rows of Parquet and Arrow files, a batch at a time, through pyarrow (extra `data`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from luthier.core.data.sources.files import DataFile
from luthier.core.data.sources.opening import BrokenArchive, needed, open_seekable
from luthier.core.data.sources.row import Skip, SourceRow
from luthier.core.errors import DataError

BATCH: Final = 256
_ARROW_MAGIC: Final = b"ARROW1"
_FEATHER_1: Final = b"FEA1"


def rows_of_parquet(file: DataFile, skip: Skip) -> Iterator[SourceRow]:
    """The rows of a Parquet file; row groups that are skipped are not read."""
    with _reading(file), open_seekable(file) as stream:
        opened = needed("pyarrow.parquet", file.shown).ParquetFile(stream)
        sizes = [opened.metadata.row_group(index).num_rows for index in range(opened.metadata.num_row_groups)]
        passed, first = 0, 0
        while first < len(sizes) and skip.left >= sizes[first]:
            passed += skip.take(sizes[first])
            first += 1
        batches = opened.iter_batches(batch_size=BATCH, row_groups=list(range(first, len(sizes))))
        yield from _rows(file, batches, skip, passed)


def count_parquet(file: DataFile) -> int:
    """The number of rows, from the metadata at the end of the file."""
    with _reading(file), open_seekable(file) as stream:
        return int(needed("pyarrow.parquet", file.shown).ParquetFile(stream).metadata.num_rows)


def rows_of_arrow(file: DataFile, skip: Skip) -> Iterator[SourceRow]:
    """The rows of an Arrow file: the file format, which Feather 2 is as well, or the stream format."""
    with _reading(file), _batches(file) as batches:
        yield from _rows(file, batches, skip, 0)


def count_arrow(file: DataFile) -> int:
    """The number of rows: every batch says it."""
    with _reading(file), _batches(file) as batches:
        return sum(batch.num_rows for batch in batches)


@contextmanager
def _batches(file: DataFile) -> Iterator[Iterator[Any]]:
    ipc = needed("pyarrow.ipc", file.shown)
    with open_seekable(file) as stream:
        begin = stream.read(len(_ARROW_MAGIC))
        stream.seek(0)
        if begin.startswith(_FEATHER_1):
            fix = "write it again with a newer pyarrow, or as Parquet"
            raise DataError("is a Feather file of version 1", where=file.shown, fix=fix)
        if begin == _ARROW_MAGIC:
            opened = ipc.open_file(stream)
            yield (opened.get_batch(index) for index in range(opened.num_record_batches))
        elif begin:
            yield iter(ipc.open_stream(stream))
        else:
            yield iter(())


def _rows(file: DataFile, batches: Iterator[Any], skip: Skip, passed: int) -> Iterator[SourceRow]:
    shown = file.shown
    for batch in batches:
        for part in range(0, batch.num_rows, BATCH):
            piece = batch.slice(part, BATCH)
            passing = skip.take(piece.num_rows)
            for index, value in enumerate(piece.slice(passing).to_pylist(), passed + passing + 1):
                yield SourceRow(shown, index, value, "row")
            passed += piece.num_rows


@contextmanager
def _reading(file: DataFile) -> Iterator[None]:
    library = needed("pyarrow", file.shown)
    try:
        yield
    except (library.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # of the disk or the network, not of the content
        fix = "check that the file was written completely, and that it is what its name says"
        raise DataError(f"is no {file.type} file, or damaged: {error}", where=file.shown, fix=fix) from error
    except BrokenArchive as error:
        raise DataError(f"the archive is damaged or cut off: {error}", where=file.shown, fix="copy it again") from error
