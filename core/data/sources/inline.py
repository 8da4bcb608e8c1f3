"""Rows that stand in the configuration itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

from luthier.core.config.schema import SourceConfig
from luthier.core.data.sources.row import RowSource, SourceRow
from luthier.core.frozen import canonical_json, thaw


class InlineRows(RowSource):
    """The rows of `SourceConfig.inline`."""

    name = "inline"

    def __init__(self, source: SourceConfig) -> None:
        self._rows = source.inline[: source.rows]

    def rows(self, start: int = 0) -> Iterator[SourceRow]:
        for index, row in enumerate(islice(self._rows, start, None), start + 1):
            yield SourceRow(self.name, index, thaw(row), "row")

    def count(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> str:
        content = canonical_json({"inline": self._rows})
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
