"""Rows of several sources in the order of a stream, which can be entered at any place.

    concatenate                    a a a a b b
    interleave, weights 2 and 1    a b a a b a      which source is next is drawn; each gives its rows in order

A pass has the rows that the same sources have when they are prepared beforehand (mixing.py), and every pass has the same
ones. One row of each source is read ahead, because only then is it known which row was the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.data.mixing import Stop, interleave_order
from luthier.core.errors import DataError

if TYPE_CHECKING:
    from luthier.core.data.sources import RowSource, SourceRow


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a stream of rows stands, in numbers that JSON can hold (`to_plain`, `from_plain`).

    epoch     passes that are done
    taken     rows taken in this pass
    drawn     sources drawn in this pass, under `interleave`
    read      rows taken of each source since it was begun, be it anew
    used_up   which sources were used up in this pass
    """

    epoch: int
    taken: int
    drawn: int
    read: tuple[int, ...]
    used_up: tuple[bool, ...]

    @classmethod
    def start(cls, sources: int, epoch: int = 0) -> Place:
        """The beginning of a pass."""
        return cls(epoch=epoch, taken=0, drawn=0, read=(0,) * sources, used_up=(False,) * sources)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Place:
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        return cls(**values)


class Feed:
    """The rows of `sources` as one stream without end; `place` is where it stands, before the next row."""

    def __init__(
        self,
        sources: Sequence[RowSource],
        *,
        mix: Literal["concatenate", "interleave"] = "concatenate",
        weights: Sequence[float] = (),
        stop: Stop = "first_exhausted",
        seed: int = 0,
    ) -> None:
        self._sources = tuple(sources)
        self._interleaved = mix == "interleave" and len(self._sources) > 1
        self._weights = weights
        self._all = not self._interleaved or stop == "all_exhausted"
        self._seed = seed
        self.seek(Place.start(len(self._sources)))

    def seek(self, place: Place) -> None:
        """Go on at another place; the sources skip what stands before it."""
        self.place = place
        self._cursors: dict[int, _Cursor] = {}
        self._order: Iterator[int] | None = None

    def close(self) -> None:
        """Close the files that the sources have open; `take` would open them anew."""
        self.seek(self.place)

    @property
    def rows_per_pass(self) -> int | None:
        """Rows of a pass where the sources know their numbers without being read, else None."""
        counts = [source.count() for source in self._sources]
        if self._interleaved or None in counts:
            return None
        return sum(count for count in counts if count is not None)

    def take(self, count: int) -> Iterator[tuple[int, SourceRow]]:
        """The next rows, each after the number of its source: at most `count`, and none of the next pass.

        Raises DataError for a row that cannot be read, and for a source that has become shorter than `place` says.
        """
        epoch = self.place.epoch
        while count and self.place.epoch == epoch:
            number = self._next_source()
            row = self._take_from(number)
            if row is not None:
                count -= 1
                yield number, row

    def _next_source(self) -> int:
        if not self._interleaved:
            return self.place.used_up.index(False)
        if self._order is None:
            self._order = interleave_order(self._weights, self._seed)
            deque(islice(self._order, self.place.drawn), maxlen=0)
        self.place = replace(self.place, drawn=self.place.drawn + 1)
        return next(self._order)

    def _take_from(self, number: int) -> SourceRow | None:
        """Its next row, with `place` moved on; None where it has none at all."""
        cursor = self._cursors.get(number)
        if cursor is None:
            cursor = self._cursors[number] = _Cursor(self._sources[number], self.place.read[number])
        row = cursor.following
        if row is None and self._interleaved:
            raise DataError("holds no rows", where=cursor.name, fix="leave this source out: rows cannot be drawn from it")
        if row is not None:
            cursor.advance()
        taken = int(row is not None)
        read, used_up = list(self.place.read), list(self.place.used_up)
        read[number] += taken
        if cursor.following is None:
            read[number], used_up[number] = 0, True
            del self._cursors[number]
        self.place = replace(self.place, taken=self.place.taken + taken, read=tuple(read), used_up=tuple(used_up))
        if all(used_up) if self._all else any(used_up):
            self.seek(Place.start(len(self._sources), self.place.epoch + 1))
        return row


class _Cursor:
    """A source from one of its rows on; `following` is the row to come, None after the last one."""

    def __init__(self, source: RowSource, start: int) -> None:
        self.name = source.name
        self._rows = source.rows(start)
        self.following: SourceRow | None = None
        self.advance()
        if start and self.following is None:
            raise DataError(
                f"has no row after the first {start:,}, and had more when the checkpoint was saved",
                where=self.name,
                fix="resume with the data of the first run, or start anew with --overwrite",
            )

    def advance(self) -> None:
        try:
            self.following = next(self._rows, None)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=self.name) from error
