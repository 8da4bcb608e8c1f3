"""Rows that are longer than `data.max_length`: dropped or cut, and each cut told by its reason.

drop            the row is left out
truncate_right  the tokens beyond max_length
truncate_left   the tokens before the last max_length; a BOS token at the start stays, so one token more goes
preferences     both answers keep the same prompt. `truncate_left` cuts the prompt, as far as the longer answer needs it
                and down to half of max_length; what is still too long is cut at the end. `truncate_right` cuts each
                sequence at its end
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

from luthier.core.config.schema import DataConfig
from luthier.core.contracts import DataKind
from luthier.core.data.encode.labels import Labelled
from luthier.core.data.encode.result import Encoded, Piece
from luthier.core.data.encode.tokens import Span
from luthier.core.errors import DataError

NOTHING_TO_LEARN: Final = "no token to learn"
END_CUT: Final = "end of turn cut off"
START_CUT: Final = "start of an answer cut off"


class Lengths:
    """`data.too_long` for one kind of data. Raises DataError for a choice that this kind cannot have.

    bos  the tokenizer's BOS token, None where it has none
    """

    def __init__(self, data: DataConfig, kind: DataKind, bos: int | None) -> None:
        self.limit, self.how, self._bos = data.max_length, data.too_long, bos
        if self.how == "split" and kind != "text":
            raise _impossible("split", kind, "only texts can be split: the parts of a conversation would lack its beginning")
        if self.how == "truncate_right" and kind == "prompt":
            raise _impossible("truncate_right", kind, "a prompt cut at its end no longer asks for an answer")
        self.too_long = f"longer than {self.limit} tokens"
        self._right = f"cut at the end to {self.limit} tokens"
        self._left = f"cut at the start to {self.limit} tokens"
        self._lost = f"{NOTHING_TO_LEARN} within {self.limit} tokens"

    @property
    def skip_beyond(self) -> int | None:
        """Rows of more tokens need no labels."""
        return self.limit if self.how == "drop" else None

    def fit(self, rows: Sequence[Labelled], *, learns: bool = True) -> Encoded:
        """One sequence, or the two of a preference. Without `learns` a row is kept that has nothing to learn."""
        length = max(len(row.ids) for row in rows)
        refused = next((row.refused for row in rows if row.refused), "")
        if refused:
            return Encoded(dropped=refused, length=length)
        encoded = Encoded(
            length=length,
            turns=sum(row.turns for row in rows),
            marked=sum(row.marked for row in rows),
            unclosed=sum(row.unclosed for row in rows),
        )
        if length > self.limit and self.how == "drop":
            return Encoded(dropped=self.too_long, length=length)
        if length <= self.limit:
            pieces = [Piece(row.ids, row.trained) for row in rows]
            lost = NOTHING_TO_LEARN
        else:
            pieces, encoded.cut = self._cut(rows, length)
            lost = self._lost if all(any(row.trained) for row in rows) else NOTHING_TO_LEARN
        if learns and not all(any(piece.trained) for piece in pieces):
            return Encoded(dropped=lost, length=length)
        encoded.pieces = pieces
        return encoded

    def _cut(self, rows: Sequence[Labelled], length: int) -> tuple[list[Piece], tuple[str, ...]]:
        reasons: dict[str, None] = {}
        removed = Removed(0, 0)
        if self.how == "truncate_left":
            begin = int(rows[0].ids[0] == self._bos)
            excess = length - self.limit
            if len(rows) > 1:
                # The two prompts are the same tokens: what is removed is so, too.
                prompt = min((min((begin for begin, _ in row.spans), default=len(row.ids))) for row in rows)
                excess = min(excess, max(0, prompt - self.limit // 2))
            removed = Removed(begin, begin + excess)
            if excess:
                reasons[self._left] = None
        pieces = []
        for row in rows:
            ids, spans = array(row.ids.typecode, row.ids), row.spans
            if removed.end > removed.begin:
                del ids[removed.begin : removed.end]
                if any(begin < removed.end < end for begin, end in spans):
                    reasons[START_CUT] = None
                spans = [removed.moved(span) for span in spans]
            if len(ids) > self.limit:
                del ids[self.limit :]
                reasons[self._right] = None
                if any(begin < self.limit < end for begin, end in spans):
                    reasons[END_CUT] = None
            pieces.append(Piece(ids, Labelled(ids, spans).trained))
        return pieces, tuple(reasons)


class Removed:
    """Tokens `begin` to `end` that are taken out."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end

    def moved(self, span: Span) -> Span:
        """Where a span is afterwards."""
        begin, end = (at if at <= self.begin else max(at - (self.end - self.begin), self.begin) for at in span)
        return begin, end


def _impossible(how: str, kind: DataKind, why: str) -> DataError:
    return DataError(
        f"{how!r} is impossible for {kind} data: {why}",
        where="data.too_long",
        fix="choose drop or truncate_left" if kind == "prompt" else "choose drop, truncate_left or truncate_right",
    )
