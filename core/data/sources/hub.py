"""Rows of a data set on the Hugging Face hub, through `datasets` (extra `data`): downloaded once, or streamed.

Code that comes with a data set is never run. The fingerprint holds the commit that the revision means today.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final

from luthier.core.config.schema import SourceConfig
from luthier.core.data.sources.opening import needed
from luthier.core.data.sources.permission import check_elsewhere
from luthier.core.data.sources.row import RowSource, SourceRow
from luthier.core.errors import DataError, LuthierError
from luthier.core.frozen import canonical_json

BATCH: Final = 256
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_log = logging.getLogger(__name__)


class HubRows(RowSource):
    """One split of a hub data set. Nothing is asked of the network before rows, their number or a fingerprint are."""

    def __init__(self, source: SourceConfig, *, streaming: bool = False) -> None:
        hub = source.hub or ""
        subset = f"/{source.subset}" if source.subset else ""
        self.name = f"{hub}{subset} ({source.split})"
        self._source, self._streaming = source, streaming
        check_elsewhere(hub, "a hub data set")
        if not _IDENTIFIER.fullmatch(hub):
            raise DataError("is no name of a hub data set", where=hub, fix="write it as on the hub: owner/name")
        if Path(hub).exists():
            # `datasets` would read the folder instead, and which of the two was trained on would depend on the machine.
            raise DataError("is also a path here", where=hub, fix=f"write `path: {hub}`, or start from another folder")

    def rows(self, start: int = 0) -> Iterator[SourceRow]:
        limit = None if self._source.rows is None else max(0, self._source.rows - start)
        values = self._streamed(start) if self._streaming else self._stored(start)
        number = start
        with self._errors():
            for value in islice(values, limit):
                number += 1
                yield SourceRow(self.name, number, value, "row")
            if not number and limit != 0:
                raise DataError("holds no rows", where=self.name, fix="choose another split")

    def count(self) -> int | None:
        if self._streaming:
            return None
        with self._errors():
            total = len(self._data)
        return total if self._source.rows is None else min(total, self._source.rows)

    def fingerprint(self) -> str:
        with self._errors():
            commit = str(self._builder.hash)
        content = {
            "hub": self._source.hub,
            "subset": self._source.subset,
            "split": self._source.split,
            "commit": commit,
            "rows": self._source.rows,
        }
        return hashlib.blake2b(canonical_json(content).encode(), digest_size=16).hexdigest()

    @cached_property
    def _builder(self) -> Any:
        library = needed("datasets", f"the hub data set {self._source.hub}")
        return library.load_dataset_builder(self._source.hub, name=self._source.subset, revision=self._source.revision)

    @cached_property
    def _data(self) -> Any:
        if self._streaming:
            return self._builder.as_streaming_dataset(split=self._source.split)
        self._builder.download_and_prepare()
        return self._builder.as_dataset(split=self._source.split)

    def _stored(self, start: int) -> Iterator[Any]:
        # As Arrow, so that images and sounds stay undecoded: a format that needs none of them need not decode them.
        with self._errors():
            data = self._data
        if start < len(data):
            for table in data.select(range(start, len(data))).with_format("arrow").iter(batch_size=BATCH):
                yield from table.to_pylist()

    def _streamed(self, start: int) -> Iterator[Any]:
        with self._errors():
            data = self._data
        yield from data.skip(start) if start else data

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What goes wrong on the way from the hub is the library's exception of any kind; here it names the data set."""
        try:
            yield
        except LuthierError:
            raise
        except Exception as error:
            _log.debug("the data set %s cannot be read", self.name, exc_info=True)
            raise DataError(self._reason(error), where=self.name, fix=self._fix(error)) from error

    def _reason(self, error: Exception) -> str:
        text = str(error).strip() or type(error).__name__
        if type(error).__name__ == "DatasetNotFoundError":
            return f"is not on the hub, or not open to you: {text}"
        return (
            f"cannot be read: {text}"
            if isinstance(error, ValueError)
            else f"cannot be read ({type(error).__name__}): {text}"
        )

    def _fix(self, error: Exception) -> str:
        if "[" in self._source.split and self._streaming:
            return "a part of a split, such as train[:10%], needs `data.streaming: false`; use `rows` or `sample` instead"
        text = str(error).lower()
        if isinstance(error, ValueError) and "split" in text:
            return "set `split` to one of these"
        if isinstance(error, ValueError) and "config" in text:
            return "set `subset` to one of these"
        if "script" in text:
            return (
                "this data set is a program, which is not run; look for a branch with Parquet files and name it: `revision`"
            )
        return (
            "check name, subset and revision; a private one needs `hf auth login`, and without a network it must have been "
            "downloaded before"
        )
