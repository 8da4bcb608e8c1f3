"""What a source is: rows in order, each knowing where it stands, a number of them, and a fingerprint of their content."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.core.extensions import Row


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row. `line` counts from 1: the line of a text file where the row begins, or the number of a table's row."""

    path: str | Path
    line: int
    value: Row
    unit: Literal["line", "row"] = "line"

    @property
    def where(self) -> str:
        """`data/train.jsonl:12`, or `data/train.parquet, row 12`."""
        return f"{self.path}:{self.line}" if self.unit == "line" else f"{self.path}, row {self.line}"


class RowSource(ABC):
    """Rows of anything, read as they are asked for; `name` is how reports and errors call the source."""

    name: str

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[SourceRow]:
        """The rows in order from row number `start` (0 is the first), at most as many as `SourceConfig.rows` says.

        What lies before `start` is passed over without being parsed where the file type allows that. Raises DataError
        with file and row for whatever cannot be read.
        """

    @abstractmethod
    def count(self) -> int | None:
        """How many rows `rows()` gives; None where only reading a stream to its end would tell."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digest of the content and of how it is read; file names and dates do not count."""


class Skip:
    """How many rows are still to be passed over, shared by the files of one source."""

    __slots__ = ("left",)

    def __init__(self, left: int = 0) -> None:
        self.left = left

    def passes(self) -> bool:
        """Whether the row at hand is passed over."""
        if self.left:
            self.left -= 1
            return True
        return False

    def take(self, rows: int) -> int:
        """How many of so many rows at hand are passed over."""
        taken = min(self.left, rows)
        self.left -= taken
        return taken
