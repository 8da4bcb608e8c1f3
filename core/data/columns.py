"""Columns under other names, `columns: {instruction: question, answer: reply.text}`, and those that are not for text."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.data.sources import SourceRow
from luthier.core.errors import DataError
from luthier.core.extensions import Row, RowError

_MISSING: Final = object()
_MEDIA: Final = {"image", "images", "video", "videos", "audio", "audios"}


def check_media(row: Row) -> None:
    """Raises RowError for a column of images, videos or sounds that is not empty: its text would be learned without them."""
    for name in sorted(_MEDIA & row.keys()):
        if row[name]:
            raise RowError(
                f"holds {name.removesuffix('s')} data, and the model reads text only (take the column out where the text "
                "needs none of it)",
                column=name,
            )


class Columns:
    """From a format's column names to those that the rows have; a dot goes into an object: `reply.text`."""

    def __init__(self, written: Mapping[str, str]) -> None:
        self._written = dict(written)
        self._taken = {path.split(".")[0] for path in self._written.values()}

    def renamed(self, row: Row) -> Row:
        """The row with the format's names; the row itself where nothing is renamed. What it lacks stays away."""
        if not self._written:
            return row
        found = {name: _at(row, path) for name, path in self._written.items()}
        rest = {name: value for name, value in row.items() if name not in self._taken and name not in found}
        return rest | {name: value for name, value in found.items() if value is not _MISSING}

    def written(self, column: str) -> str:
        """A column of an error, such as `history[0]`, by the name that the user's rows have for it."""
        name = re.match(r"[^.\[]*", column)
        first = name[0] if name else ""
        return self._written[first] + column[len(first) :] if first in self._written else column

    def check(self, first: Sequence[SourceRow], source: str) -> None:
        """Raises DataError for a column that none of the first rows has, with the nearest that they have."""
        for name, path in self._written.items():
            if first and all(_at(row.value, path) is _MISSING for row in first):
                has = sorted({str(column) for row in first for column in row.value})
                near = difflib.get_close_matches(path, has, n=1, cutoff=0.5)
                fix = f"did you mean {near[0]!r}?" if near else f"the columns are: {', '.join(has) or 'none'}"
                raise DataError(f"no row has the column {path!r}, which `columns` takes for {name}", where=source, fix=fix)


def _at(row: Any, path: str) -> Any:
    if isinstance(row, Mapping) and path in row:
        return row[path]
    value = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value
