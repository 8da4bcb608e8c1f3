"""Rows of anything, each with the place it stands at.

row.py         what a row and a source are
files.py       names: types, compressions, URLs          permission.py   which files may be read
locate.py      from a path to its files                  remote.py       files behind URLs
opening.py     bytes and text, decompressed, decoded     file_rows.py    files as one source
json_rows.py, texts.py, tables.py                        the readers of each type
hub.py         hub data sets                             inline.py       rows in the configuration
dataset_info.py, entries.py                              LLaMA-Factory's dataset_info.json

A source is read as it is asked for and never held whole, whether `data.streaming` is set or not. Every error names the
file and the row.
"""

from __future__ import annotations

from pathlib import Path

from luthier.core.config.schema import SourceConfig
from luthier.core.data.sources.dataset_info import resolve_sources
from luthier.core.data.sources.file_rows import FileRows
from luthier.core.data.sources.hub import HubRows
from luthier.core.data.sources.inline import InlineRows
from luthier.core.data.sources.locate import place
from luthier.core.data.sources.row import RowSource, SourceRow
from luthier.core.errors import DataError

__all__ = ["RowSource", "SourceRow", "open_rows", "place", "resolve_sources"]


def open_rows(source: SourceConfig, base: Path | None = None, *, streaming: bool = False) -> RowSource:
    """The rows that a source means; a relative path is looked for in the current folder, then in `base`.

    `streaming` reads a hub data set over the network instead of downloading it, and counts nothing that must be read for
    it. Raises DataError when there is no such file, or its type cannot be told.
    """
    if source.dataset:
        raise DataError(
            f"the source {source.dataset!r} is an entry of dataset_info.json that was not looked up",
            where="dataset",
            fix="read the configuration with luthier.load_config, or call resolve_sources first",
        )
    if source.inline:
        return InlineRows(source)
    return HubRows(source, streaming=streaming) if source.hub else FileRows(source, base, streaming=streaming)
