"""Documents: every token is learned, and each ends with the EOS token, so that packed ones have a boundary.

BOS? t t t t t t t t EOS        split into consecutive blocks of max_length tokens where `data.too_long: split` says so
`--block--'`--block--'          the first token of a block is not learned: nothing in the block predicts it
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final

from luthier.core.config.schema import DataConfig
from luthier.core.contracts import DataKind
from luthier.core.data.encode.check import FirstRows
from luthier.core.data.encode.chunks import ID_TYPE
from luthier.core.data.encode.fingerprint import fingerprint
from luthier.core.data.encode.labels import Labelled
from luthier.core.data.encode.lengths import END_CUT, NOTHING_TO_LEARN, START_CUT, Lengths
from luthier.core.data.encode.result import Encoded, Encoder, Piece
from luthier.core.data.encode.tokens import Whole, tokens_of
from luthier.core.data.sources import SourceRow
from luthier.core.errors import DataError
from luthier.core.extensions import Row

NO_EOS: Final = "the tokenizer has no EOS token to end a text with"
LONE: Final = "last block of a single token left out"
TEXT_END_CUT: Final = "end of text cut off"


class TextEncoder(Encoder):
    """`{"text": str}` to tokens; the tokenizer's own special tokens around a text (BOS) are put there as it would."""

    kind: DataKind = "text"
    labels_from = "every token"

    def __init__(self, tokenizer: Any, data: DataConfig) -> None:
        self._tokens = tokens_of(tokenizer)
        self._data = data
        self._lengths = Lengths(data, "text", tokenizer.bos_token_id)
        self._before, self._after = _around(tokenizer)
        self._eos: int | None = tokenizer.eos_token_id
        self._check = FirstRows(tokenizer)

    def encode(self, rows: Sequence[tuple[SourceRow, Row]]) -> list[Encoded]:
        """As Encoder says."""
        wholes = self._tokens.encode([row["text"] for _, row in rows])
        return [self._encoded(source, whole) for (source, _), whole in zip(rows, wholes, strict=True)]

    def fingerprint(self) -> str:
        """As Encoder says."""
        return fingerprint(self._tokens.tokenizer, self.kind, self._data)

    def _encoded(self, source: SourceRow, whole: Whole) -> Encoded:
        ids = whole.ids
        if not ids:
            return Encoded(dropped=NOTHING_TO_LEARN)
        self._check.text(source, whole.text, self._before + ids + self._after)
        # Written into the text itself already, a special token is not put there again.
        if self._before and ids[: len(self._before)] != self._before:
            ids = self._before + ids
        if self._after and ids[-len(self._after) :] != self._after:
            ids = ids + self._after
        if self._eos is not None and ids[-1] != self._eos:
            ids = ids + array(ID_TYPE, [self._eos])
        if self._data.too_long == "split" and len(ids) > self._lengths.limit:
            encoded = self._split(ids)
        else:
            encoded = self._lengths.fit([Labelled(ids, [(0, len(ids))])])
            # A text has no turns: what was cut is its end, and that its start is gone says the reason itself.
            renamed = {END_CUT: TEXT_END_CUT}
            encoded.cut = tuple(renamed.get(reason, reason) for reason in encoded.cut if reason != START_CUT)
        if self._eos is None and encoded.pieces:
            encoded.notes = (NO_EOS,)
        return encoded

    def _split(self, ids: array[int]) -> Encoded:
        limit = self._lengths.limit
        blocks = [ids[at : at + limit] for at in range(0, len(ids), limit)]
        encoded = Encoded(length=len(ids))
        if len(blocks[-1]) == 1:  # nothing in it could be learned
            blocks.pop()
            encoded.cut = (LONE,)
        encoded.pieces = [Piece(block, Labelled(block, [(0, len(block))]).trained) for block in blocks]
        return encoded


def _around(tokenizer: Any) -> tuple[array[int], array[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return array(ID_TYPE, whole[:at]), array(ID_TYPE, whole[at + len(plain) :])
    raise DataError(
        "cannot tell which special tokens the tokenizer puts around a text: the text's own tokens differ with them",
        where=str(getattr(tokenizer, "name_or_path", "") or "tokenizer"),
        fix="use a tokenizer that only puts tokens before and after",
    )
