"""What encoding a row gives, and what every encoder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from luthier.core.contracts import DataKind
from luthier.core.data.sources import SourceRow
from luthier.core.extensions import Row


@dataclass(slots=True)
class Piece:
    """One token sequence and, for each token, 1 where it is learned; the first token never is: nothing predicts it."""

    ids: Sequence[int]
    trained: bytes | bytearray


@dataclass(slots=True)
class Encoded:
    """What became of one canonical row.

    pieces    one; several where a text was split; two for a preference, chosen then rejected; none when it was dropped
    dropped   why it has no pieces, for counting
    cut       what was cut off, for counting
    value     unpaired: 1.0 for a good answer, 0.0 for a bad one; preference: its margin
    turns     answers that are to be learned
    marked    of these, how many have learned tokens
    unclosed  learned answers that end with no special token: nothing there teaches the model to stop
    notes     remarks, for counting
    beside    what the row has beside its tokens, JSON in UTF-8
    length    tokens before anything was cut or dropped; of a preference, those of its longer sequence
    """

    pieces: list[Piece] = field(default_factory=list)
    dropped: str = ""
    cut: tuple[str, ...] = ()
    value: float | None = None
    turns: int = 0
    marked: int = 0
    unclosed: int = 0
    notes: tuple[str, ...] = ()
    beside: bytes = b""
    length: int = 0


class Encoder(ABC):
    """Canonical rows of one kind to token ids and labels.

    labels_from  how it is decided which tokens are learned, for the report
    template     the chat template in words, for the report; "" where none is used
    per_row      pieces of a kept row: 2 for preferences, else 1 (a text that was split is several rows)
    """

    kind: DataKind
    labels_from: str
    template: str = ""
    per_row: int = 1

    @abstractmethod
    def encode(self, rows: Sequence[tuple[SourceRow, Row]]) -> list[Encoded]:
        """One result for each row, in order. Raises DataError naming the row where it cannot be written as tokens."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal, over everything besides the rows that decides the result."""
