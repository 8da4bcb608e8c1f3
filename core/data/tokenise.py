"""Rows to tokens, a batch at a time: what each process that tokenises does, be it one or many.

    rows -> `convert_rows` -> canonical rows -> `encode_rows` -> a chunk of a store, and the counts

A batch's result depends on its rows alone, so the number of processes changes nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from luthier.core.data.formats import BadRow, LeftOut
from luthier.core.data.holdout import content_key
from luthier.core.data.sources import SourceRow
from luthier.core.data.store import Chunk
from luthier.core.data.tally import Tally
from luthier.core.extensions import Row

if TYPE_CHECKING:
    from luthier.core.data.encode import Encoded, Encoder

T = TypeVar("T")
ROWS_AT_ONCE: Final = 256
SPLIT: Final = "parts of rows that were split"

Convert: TypeAlias = Callable[[SourceRow], Row]
Pairs: TypeAlias = list[tuple[SourceRow, Row]]


@dataclass(frozen=True, eq=False)
class Tokenised:
    """A batch's tokens and counts."""

    chunk: Chunk
    tally: Tally


def batches(rows: Iterable[T], size: int = ROWS_AT_ONCE) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


def convert_rows(rows: Sequence[SourceRow], convert: Convert, *, drop_bad: bool) -> tuple[Pairs, Tally]:
    """The canonical rows; a bad one raises BadRow, or is counted with `drop_bad`. What a format leaves out is counted."""
    pairs: Pairs = []
    tally = Tally(rows=len(rows))
    for row in rows:
        try:
            pairs.append((row, convert(row)))
        except LeftOut as left_out:
            tally.dropped[left_out.reason] += 1
        except BadRow as bad:
            if not drop_bad:
                raise
            tally.dropped[bad.reason] += 1
    return pairs, tally


def encode_rows(pairs: Pairs, tally: Tally, encoder: Encoder, max_length: int) -> Tokenised:
    """Tokens of canonical rows, with what became of them added to `tally`, the counts of their conversion."""
    ids = array("i")
    trained = bytearray()
    lengths: list[int] = []
    keys: list[int] = []
    values: list[float | None] = []
    beside: list[bytes] = []
    for (_, canonical), encoded in zip(pairs, encoder.encode(pairs), strict=True):
        tally.notes.update(encoded.notes)
        if encoded.dropped:
            tally.dropped[encoded.dropped] += 1
            if encoded.length > max_length:
                tally.too_long(encoded.length)
            continue
        for piece in encoded.pieces:
            ids.extend(piece.ids)
            trained += piece.trained
            lengths.append(len(piece.ids))
        parts = len(encoded.pieces) // encoder.per_row
        _count(encoded, tally, parts)
        keys += [content_key(canonical)] * parts
        values += [encoded.value] * parts
        beside += [encoded.beside] * parts
    return Tokenised(Chunk.of(ids, trained, lengths, keys, values, beside if any(beside) else ()), tally)


def _count(encoded: Encoded, tally: Tally, parts: int) -> None:
    tally.kept += parts
    if parts > 1:
        tally.added[SPLIT] += parts - 1
    tally.cut.update(encoded.cut)
    tally.cut_rows += bool(encoded.cut)
    tally.turns += encoded.turns
    tally.marked += encoded.marked
    tally.unclosed += encoded.unclosed
