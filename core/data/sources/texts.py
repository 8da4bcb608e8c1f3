"""Rows of plain text: a .txt file's lines, and the lines of a .csv or .tsv file under their header.

Every cell is a string, as it is written: whether "1" is a number is not for a reader to guess.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Final

from luthier.core.data.sources.files import DataFile
from luthier.core.data.sources.opening import lines_of
from luthier.core.data.sources.row import Skip, SourceRow
from luthier.core.errors import DataError

# The csv module stops at 131,072 characters, which documents exceed; what exceeds this is a quote that is never closed.
_LARGEST_CELL: Final = 1 << 27
_DELIMITERS: Final = {"csv": ",", "tsv": "\t"}
_QUOTE_FIX: Final = 'a cell with quotes, separators or newlines stands in quotes, and a quote in it is doubled: "say ""hi"""'


def rows_of_text(file: DataFile, skip: Skip) -> Iterator[SourceRow]:
    """`{"text": line}` for every line that is not blank."""
    shown = file.shown
    for number, line in lines_of(file):
        if line and not line.isspace() and not skip.passes():
            yield SourceRow(shown, number, {"text": line.removesuffix("\r")})


def rows_of_cells(file: DataFile, skip: Skip) -> Iterator[SourceRow]:
    """A row for each record, with the cells under their names in the header; raises DataError with the record's line."""
    shown, delimiter = file.shown, _DELIMITERS[file.type]
    records = _records(file, delimiter)
    line, header = next(records, (1, []))
    if not header:
        return
    _check_header(header, f"{shown}:{line}", delimiter)
    for line, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"has {len(cells)} cell{'' if len(cells) == 1 else 's'}, and the header {len(header)}",
                where=f"{shown}:{line}",
                fix=_QUOTE_FIX,
            )
        if not skip.passes():
            yield SourceRow(shown, line, dict(zip(header, cells, strict=True)))


def _records(file: DataFile, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, each with the line on which it begins."""
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader((f"{line}\n" for _, line in lines_of(file)), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"bad {file.type.upper()}: {error}", where=f"{file.shown}:{line}", fix=_QUOTE_FIX) from error
        if cells is None:
            return
        if cells:
            yield line, cells


def _check_header(header: list[str], where: str, delimiter: str) -> None:
    fix = "the first line names the columns, each once"
    for index, name in enumerate(header):
        if not name.strip():
            raise DataError(f"column {index + 1} has no name", where=where, fix=fix)
        if name in header[:index]:
            raise DataError(f"two columns are called {name!r}", where=where, fix=fix)
    other = next((mark for mark in "\t;,|" if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other is not None:
        advice = {"\t": "say `type: tsv`", ",": "say `type: csv`"}.get(other, "write it with commas")
        raise DataError(f"the columns are separated by {other!r}, not by {delimiter!r}", where=where, fix=advice)
