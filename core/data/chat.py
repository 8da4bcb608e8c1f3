"""Tokens and labels of conversations, from the tokenizer's own chat template.

What is trained must be what inference asks for. So an assistant turn is learned as the continuation of exactly the tokens
that `apply_chat_template(messages before it, add_generation_prompt=True)` gives:

    <|user|> hi <eos> <|assistant|> hello <eos> \\n <|user|> ...
    `---- the prompt, P ---------' `--------'    learned: the answer with its end-of-turn token; white space that the
                                                 template puts after that token is not learned

Where the template marks the answers with `{% generation %}`, its marks are the labels; otherwise they follow from prefixes:
P must be a prefix of Q, the tokens of the messages up to and including the turn, and both of the whole conversation. A
template that rewrites earlier turns (numbers them, strips their thinking) has not got this property and is refused by row
and turn: training on it would teach answers to prompts that inference never gives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from luthier.core.data.conversation import Messages
from luthier.core.data.sources import SourceRow
from luthier.core.errors import DataError

ChatRow: TypeAlias = tuple[SourceRow, Messages]
Span: TypeAlias = tuple[int, int]
_GENERATION: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PREFIX_FIX: Final = (
    "use a chat template whose earlier turns do not depend on later ones, or give each row one assistant turn, or learn "
    "every token with data.train_on: all"
)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One conversation: token ids and, for each, 1 where it is learned.

    turns     assistant turns
    marked    of these, how many the template marks
    unclosed  learned spans that end with no special token: nothing there teaches the model to stop
    """

    ids: list[int]
    trained: bytearray
    turns: int = 0
    marked: int = 0
    unclosed: int = 0


class ChatEncoder:
    """Encodes batches of conversations. Raises DataError when the tokenizer has no chat template.

    Rows of more than `max_length` tokens come back without labels: they are going to be dropped.
    """

    def __init__(self, tokenizer: Any, *, train_on: Literal["completion", "all"], max_length: int) -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.max_length = max_length
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(
                "the model's tokenizer has no chat template, so conversations cannot be written as tokens",
                where=str(getattr(tokenizer, "name_or_path", "") or "tokenizer"),
                fix="start from an instruction-tuned model, or put a chat_template.jinja into the model's folder",
            ) from error
        self.marked_by_template = bool(_GENERATION.search(template)) and bool(tokenizer.is_fast)
        self._special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self._blank: dict[int, bool] = {}

    @property
    def labels_from(self) -> str:
        """How the labels come about, for the report."""
        if self.train_on == "all":
            return "every token"
        return "the template's generation marks" if self.marked_by_template else "prefix comparison"

    def encode(self, rows: Sequence[ChatRow]) -> list[EncodedRow]:
        """Token ids as `apply_chat_template` gives them, and labels. Raises DataError naming the row, and the turn."""
        if not rows:
            return []
        if self.train_on == "all":
            return [EncodedRow(ids, _marks(len(ids), [(1, len(ids))])) for ids in self._tokens(self._texts(rows))]
        if self.marked_by_template:
            return self._encode_marked(rows)
        return self._encode_by_prefix(rows)

    def _encode_marked(self, rows: Sequence[ChatRow]) -> list[EncodedRow]:
        batch = self._apply(
            rows,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_attention_mask": False, "verbose": False},
        )
        whole: list[list[int]] = batch["input_ids"]
        turns = self._turns(rows, whole)
        prompts = self._tokens(self._texts([(rows[row][0], rows[row][1][:at]) for row, at in turns], prompt=True))
        for (row, at), prompt in zip(turns, prompts, strict=True):
            if whole[row][: len(prompt)] != prompt:
                raise _no_prefix(rows[row], at)
        encoded = []
        for (_, messages), ids, mask in zip(rows, whole, batch["assistant_masks"], strict=True):
            answers = sum(message["role"] == "assistant" for message in messages)
            runs = [] if len(ids) > self.max_length else _runs(mask)
            encoded.append(self._encoded(ids, runs, answers))
        return encoded

    def _encode_by_prefix(self, rows: Sequence[ChatRow]) -> list[EncodedRow]:
        texts = self._texts(rows)
        whole = self._tokens(texts)
        turns = self._turns(rows, whole)
        prompts = self._tokens(self._texts([(rows[row][0], rows[row][1][:at]) for row, at in turns], prompt=True))
        # A conversation's last message ends where the whole ends: its tokens are known already.
        inner = [(row, at) for row, at in turns if at + 1 < len(rows[row][1])]
        upto_texts = self._texts([(rows[row][0], rows[row][1][: at + 1]) for row, at in inner])
        upto = dict(zip(inner, self._tokens(upto_texts), strict=True))
        spans: dict[int, list[Span]] = {}
        for (row, at), prompt in zip(turns, prompts, strict=True):
            ids, turn = whole[row], upto.get((row, at), whole[row])
            end, _ = self._learned_end(turn, len(prompt), len(turn))
            # With the first, `end` is at least len(prompt): the second makes the prompt a prefix of the whole as well.
            if turn[: len(prompt)] != prompt or ids[:end] != turn[:end]:
                raise _no_prefix(rows[row], at)
            spans.setdefault(row, []).append((len(prompt), len(turn)))
        return [self._encoded(ids, spans.get(row, []), len(spans.get(row, []))) for row, ids in enumerate(whole)]

    def _encoded(self, ids: list[int], spans: list[Span], turns: int) -> EncodedRow:
        learned, unclosed = [], 0
        for begin, stop in spans:
            end, closed = self._learned_end(ids, begin, min(stop, len(ids)))
            learned.append((begin, end))
            unclosed += not closed
        return EncodedRow(ids, _marks(len(ids), learned), turns, len(spans), unclosed)

    def _learned_end(self, ids: list[int], begin: int, stop: int) -> tuple[int, bool]:
        """Where learning ends in a turn, and whether a special token stands there: blank tokens after one are left out."""
        end = stop
        while end > begin and self._is_blank(ids[end - 1]):
            end -= 1
        closed = end > begin and ids[end - 1] in self._special
        return (end, True) if closed else (stop, False)

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token]).strip()
        return self._blank[token]

    def _turns(self, rows: Sequence[ChatRow], whole: Sequence[list[int]]) -> list[tuple[int, int]]:
        """(row, message) of every assistant turn, except in rows that are too long to be kept."""
        return [
            (row, at)
            for row, (_, messages) in enumerate(rows)
            if len(whole[row]) <= self.max_length
            for at, message in enumerate(messages)
            if message["role"] == "assistant"
        ]

    def _texts(self, rows: Sequence[ChatRow], *, prompt: bool = False) -> list[str]:
        texts: list[str] = self._apply(rows, tokenize=False, add_generation_prompt=prompt) if rows else []
        return texts

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        # As apply_chat_template does: the template has written every special token that belongs there.
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        tokens: list[list[int]] = encoded["input_ids"]
        return tokens

    def _apply(self, rows: Sequence[ChatRow], **options: Any) -> Any:
        """`apply_chat_template` on all rows at once; where it fails, once more on each to name the row that it refuses."""
        try:
            return self.tokenizer.apply_chat_template([messages for _, messages in rows], **options)
        except Exception:
            for row, messages in rows:
                try:
                    self.tokenizer.apply_chat_template([messages], **options)
                except Exception as error:
                    raise _refused(row, messages, error) from error
            raise


def _marks(length: int, spans: Sequence[Span]) -> bytearray:
    """1 for the tokens inside a span. The first token never counts: nothing stands before it to predict it from."""
    marks = bytearray(length)
    for begin, end in spans:
        begin = max(begin, 1)
        if end > begin:
            marks[begin:end] = b"\x01" * (end - begin)
    return marks


def _runs(mask: Sequence[int]) -> list[Span]:
    """(begin, end) of each run of ones."""
    edges = np.diff(np.asarray(mask, dtype=np.int8), prepend=0, append=0)
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def _no_prefix(row: ChatRow, at: int) -> DataError:
    source, messages = row
    number = sum(message["role"] == "assistant" for message in messages[: at + 1])
    return DataError(
        f"the chat template lacks the prefix property: assistant turn {number} (messages[{at}]) does not continue "
        "the tokens that inference would give for the messages before it",
        where=source.where,
        fix=_PREFIX_FIX,
    )


def _refused(row: SourceRow, messages: Messages, error: Exception) -> DataError:
    roles = ", ".join(message["role"] for message in messages)
    return DataError(
        f"the chat template refuses the conversation ({roles}): {str(error) or type(error).__name__}",
        where=row.where,
        fix="change the row to roles in an order that the model's template knows",
    )
