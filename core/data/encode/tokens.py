"""Texts to token ids, and the exact answer to: are the tokens of this prompt the first ones of that whole?

An added token splits the text before anything else happens to it, so the tokens to its left do not depend on what stands to
its right. Therefore, where a prompt is the beginning of a text and holds added tokens,

    tokens(whole)   t t t t t <|im_start|> t t t t t t ...
    tokens(prompt)  t t t t t <|im_start|> t t              its tail, "<|im_start|>assistant\\n", has to be tokenised only:
                              `--- tail ---'                the same for nearly every row, and remembered

A prompt without one, one that is no beginning of the text, and a tokenizer without a backend of tokenizers': the prompt is
tokenised as it is and compared.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from luthier.core.data.encode.chunks import ID_TYPE, ChunkEncoder

Span: TypeAlias = tuple[int, int]
LONGEST_TAIL: Final = 256
MOST_TAILS: Final = 10_000


@dataclass(slots=True)
class Whole:
    """A tokenised text. `begins`, `ends` (characters) and `places` (tokens) tell where its added tokens are, as far as the
    text is certain to be split before them."""

    text: str
    ids: array[int]
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


class Tokens:
    """Any tokenizer, by its own call: nothing is assumed of it. The special tokens of a template are in the text already,
    so none is added, as in `apply_chat_template`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._tails: dict[str, array[int]] = {}

    def encode(self, texts: Sequence[str]) -> list[Whole]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [Whole(text, array(ID_TYPE, ids)) for text, ids in zip(texts, encoded["input_ids"], strict=True)]

    def ids(self, text: str) -> array[int]:
        return self.encode([text])[0].ids

    def prefix(self, whole: Whole, text: str) -> int | None:
        """How many tokens `text` has, if these are the first ones of `whole`; else None."""
        if not text:
            return 0
        last = bisect_left(whole.begins, len(text)) - 1
        if last >= 0 and whole.ends[last] <= len(text) and whole.text.startswith(text):
            begin, ids = whole.places[last], self._tail(text[whole.begins[last] :])
        else:
            begin, ids = 0, self.ids(text)
        end = begin + len(ids)
        return end if whole.ids[begin:end] == ids else None

    def covering(self, whole: Whole, span: Span) -> Span | None:
        """The tokens that cover characters of the text; None for a tokenizer that does not tell."""
        begin, end = (self.prefix(whole, whole.text[:at]) for at in span)
        return (begin, end) if begin is not None and end is not None else None

    def _tail(self, text: str) -> array[int]:
        ids = self._tails.get(text)
        if ids is None:
            ids = self.ids(text)
            if len(text) <= LONGEST_TAIL:
                if len(self._tails) >= MOST_TAILS:
                    self._tails.clear()
                self._tails[text] = ids
        return ids


class BackendTokens(Tokens):
    """A tokenizer with a backend of the tokenizers library, asked directly."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.backend = tokenizer.backend_tokenizer
        # As a call of the tokenizer without options does.
        self.backend.no_truncation()
        self.backend.no_padding()
        normalizes = self.backend.normalizer is not None
        self._splitting = {
            number: token.content
            for number, token in self.backend.get_added_tokens_decoder().items()
            if not (token.lstrip or token.single_word or (token.normalized and normalizes))
            and not token.content[:1].isspace()
        }

    def encode(self, texts: Sequence[str]) -> list[Whole]:
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [self._whole(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def _whole(self, text: str, encoding: Any) -> Whole:
        ids = array(ID_TYPE, encoding.ids)
        whole = Whole(text, ids)
        for place, number in enumerate(ids):
            content = self._splitting.get(number)
            if content is None:
                continue
            begin, end = encoding.token_to_chars(place)
            if text.startswith(content, begin):
                whole.begins.append(begin)
                whole.ends.append(max(end, begin + len(content)))
                whole.places.append(place)
        return whole

    def covering(self, whole: Whole, span: Span) -> Span | None:
        found = super().covering(whole, span)
        if found is None:  # a token reaches over the edge: it is taken in whole
            offsets = self.backend.encode(whole.text, add_special_tokens=False).offsets
            begin = next((place for place, (_, end) in enumerate(offsets) if end > span[0]), len(offsets))
            end = next((place for place in range(begin, len(offsets)) if offsets[place][0] >= span[1]), len(offsets))
            found = begin, end
        return found


class ChunkTokens(BackendTokens):
    """A byte-level BPE whose chunks are remembered."""

    def __init__(self, tokenizer: Any, chunks: ChunkEncoder) -> None:
        super().__init__(tokenizer)
        self._chunks = chunks

    def encode(self, texts: Sequence[str]) -> list[Whole]:
        return [Whole(text, *self._chunks.encode(text)) for text in texts]


def tokens_of(tokenizer: Any) -> Tokens:
    """The fastest way that gives the tokenizer's own ids."""
    from transformers import PreTrainedTokenizerFast

    own = type(tokenizer)
    ordinary = isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(own, name) is getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus")
    )
    if not ordinary or getattr(tokenizer, "split_special_tokens", False):
        return Tokens(tokenizer)
    chunks = ChunkEncoder.of(tokenizer.backend_tokenizer)
    return BackendTokens(tokenizer) if chunks is None else ChunkTokens(tokenizer, chunks)
