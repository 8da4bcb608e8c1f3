"""What became of rows, counted. The counts of a source's parts add up to its own, in whichever process they arose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.core.serial import to_plain


@dataclass
class Tally:
    """rows + the sum of `added` == kept + the sum of `dropped`; the keys of the four counters are reasons.

    rows       read
    kept       rows with tokens
    dropped    rows left out
    cut        rows kept in part; one may have several reasons, and `cut_rows` is how many there are
    added      rows beyond those read: parts of a row that was split
    notes      rows with something remarkable about them
    turns, marked, unclosed   answers, those of them that are learned, and those that end with no special token
    shortest_dropped          tokens of the shortest row that was too long
    """

    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    added: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    cut_rows: int = 0
    turns: int = 0
    marked: int = 0
    unclosed: int = 0
    shortest_dropped: int | None = None

    def __iadd__(self, other: Tally) -> Tally:
        for name in ("rows", "kept", "cut_rows", "turns", "marked", "unclosed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "cut", "added", "notes"):
            getattr(self, name).update(getattr(other, name))
        if other.shortest_dropped is not None:
            self.too_long(other.shortest_dropped)
        return self

    def too_long(self, length: int) -> None:
        """Remember a row of `length` tokens that was dropped for it."""
        self.shortest_dropped = length if self.shortest_dropped is None else min(length, self.shortest_dropped)

    def to_plain(self) -> dict[str, Any]:
        """JSON-shaped; `Tally.from_plain` reads it."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Tally:
        values: dict[str, Any] = {
            key: Counter(value) if isinstance(value, Mapping) else value for key, value in plain.items()
        }
        return cls(**values)


def reasons(counts: Mapping[str, int], verb: str) -> str:
    """`2 dropped (too long), 1 dropped (empty answer)`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {verb} ({reason})" for reason, count in ordered)
