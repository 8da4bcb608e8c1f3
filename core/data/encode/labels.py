"""Which tokens of a conversation are learned.

What is trained must be what inference asks for. So an assistant turn is learned as the continuation of exactly the tokens
that `apply_chat_template(messages before it, add_generation_prompt=True)` gives:

    <|user|> hi <eos> <|assistant|> hello <eos> \\n <|user|> ...
    `---- the prompt, P ---------' `--------'    learned: the answer with its end-of-turn token; white space that the
                                                 template puts after that token is not learned

Where the template marks the answers with `{% generation %}`, its marks are the labels; otherwise they follow from prefixes:
P must be a prefix of Q, the tokens of the messages up to and including the turn, and both of the whole conversation. A
template that rewrites earlier turns (numbers them, strips their thinking) has not got this property and is refused by row
and turn: training on it would teach answers to prompts that inference never gives. Where the texts agree and the tokens do
not, because an answer's first newline becomes one token with the prompt's last, the fault is the row's alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, TypeAlias

from luthier.core.data.encode.dialogue import Dialogue, TrainOn
from luthier.core.data.encode.template import Template
from luthier.core.data.encode.tokens import Span, Tokens, Whole
from luthier.core.errors import DataError

Turn: TypeAlias = tuple[int, int]  # row of the batch, message of the row
_PREFIX_FIX: Final = (
    "use a chat template whose earlier turns do not depend on later ones, or learn one turn of each row with data.train_on: "
    "last, or every token with data.train_on: all"
)
STRADDLED: Final = "a token reaches over the edge of an answer"


@dataclass(slots=True)
class Labelled:
    """A conversation's tokens and what of them is learned.

    spans     the learned tokens
    prompts   of each answer to learn: its message, and how many tokens the prompt before it has
    refused   why the row cannot be used, where such rows are dropped
    """

    ids: array[int]
    spans: list[Span] = field(default_factory=list)
    prompts: list[tuple[int, int]] = field(default_factory=list)
    turns: int = 0
    marked: int = 0
    unclosed: int = 0
    refused: str = ""

    @property
    def trained(self) -> bytearray:
        """1 for a token inside a span. The first token never counts: nothing stands before it to predict it from."""
        length = len(self.ids)
        marks = bytearray(length)
        for begin, end in self.spans:
            begin, end = max(begin, 1), min(end, length)
            if end > begin:
                marks[begin:end] = b"\x01" * (end - begin)
        return marks


class Labeller:
    """Labels batches of conversations; rows of more than `skip_beyond` tokens get none: they are going to be dropped.

    `drop_bad`: a row is refused by its `Labelled`, and not by an error, where the fault is its own and not the template's.
    """

    def __init__(
        self, template: Template, tokens: Tokens, *, skip_beyond: int | None = None, drop_bad: bool = False
    ) -> None:
        self.template = template
        self.tokens = tokens
        self.skip_beyond = skip_beyond
        self.drop_bad = drop_bad
        self._special = {*tokens.tokenizer.all_special_ids, *tokens.tokenizer.added_tokens_decoder}
        self._blank: dict[int, bool] = {}

    def label(self, dialogues: Sequence[Dialogue], train_on: TrainOn) -> list[Labelled]:
        """Tokens as `apply_chat_template` gives them, and labels. Raises DataError naming the row, and the turn."""
        marks = self.template.marked and train_on != "all"
        written = self.template.write(dialogues, marks=marks)
        wholes = self.tokens.encode([text for text, _ in written])
        labelled = [Labelled(whole.ids) for whole in wholes]
        short = [
            row
            for row, whole in enumerate(wholes)
            if whole.ids and (self.skip_beyond is None or len(whole.ids) <= self.skip_beyond)
        ]
        if train_on == "all":
            for row in short:
                labelled[row].spans = self._all(dialogues[row], wholes[row])
            return labelled
        turns = [(row, at) for row in short for at in dialogues[row].learned(train_on)]
        for row, _ in turns:
            labelled[row].turns += 1
        texts = self.template.prompts([(dialogues[row], at) for row, at in turns])
        for number, ((row, at), text) in enumerate(zip(turns, texts, strict=True)):
            count = self.tokens.prefix(wholes[row], text)
            if count is None:
                self._refuse(labelled[row], dialogues[row], at, whole=wholes[row], text=text)
                continue
            labelled[row].prompts.append((at, count))
            if dialogues[row].extras:
                end = len(texts[number + 1]) if turns[number + 1 : number + 2] and turns[number + 1][0] == row else None
                _check_reasoning(dialogues[row], at, wholes[row].text[len(text) : end])
        if marks:
            self._by_marks(
                dialogues, wholes, labelled, [spans for _, spans in written], dict(zip(turns, texts, strict=True))
            )
        else:
            self._by_prefix(dialogues, wholes, labelled, turns)
        return labelled

    def _by_prefix(
        self, dialogues: Sequence[Dialogue], wholes: Sequence[Whole], labelled: Sequence[Labelled], turns: Sequence[Turn]
    ) -> None:
        # A conversation's last message ends where the whole ends: its tokens are known already.
        inner = [(row, at) for row, at in turns if at + 1 < len(dialogues[row].messages)]
        texts = self.template.beginnings([(dialogues[row], at + 1) for row, at in inner])
        ends = dict(zip(inner, texts, strict=True))
        for row, whole in enumerate(wholes):
            for at, begin in labelled[row].prompts:
                text = ends.get((row, at))
                stop = len(whole.ids) if text is None else self._stop(whole, begin, text)
                if stop is not None:
                    self._learn(labelled[row], [(begin, stop)])
                elif text is not None:
                    self._refuse(labelled[row], dialogues[row], at, whole=whole, text=text)

    def _stop(self, whole: Whole, begin: int, text: str) -> int | None:
        """Where the answer ends that began at token `begin`; `text` is the conversation up to and including it."""
        stop = self.tokens.prefix(whole, text)
        if stop is not None:
            return stop
        # White space after the turn may be written, or become a token, otherwise once something follows it.
        turn = self.tokens.ids(text)
        end, _ = self._learned_end(turn, begin, len(turn))
        return end if whole.ids[:end] == turn[:end] else None

    def _refuse(self, labelled: Labelled, dialogue: Dialogue, at: int, *, whole: Whole, text: str) -> None:
        """A row whose tokens do not begin with those of `text`. Raises DataError, unless such rows are to be dropped."""
        if not whole.text.startswith(text):
            raise no_prefix(dialogue, at)
        if not self.drop_bad:
            raise straddled(dialogue, at)
        labelled.refused = STRADDLED

    def _by_marks(
        self,
        dialogues: Sequence[Dialogue],
        wholes: Sequence[Whole],
        labelled: Sequence[Labelled],
        marks: Sequence[list[Span]],
        prompts: dict[Turn, str],
    ) -> None:
        # Where an answer is not learned, the marks from its prompt on are not: so these prompts must be known as well.
        others = [turn for turn in self._next_unlearned(dialogues, labelled) if turn not in prompts]
        texts = self.template.prompts([(dialogues[row], at) for row, at in others])
        for (row, at), text in zip(others, texts, strict=True):
            if not wholes[row].text.startswith(text):
                raise no_prefix(dialogues[row], at)
        lengths: list[list[tuple[int, int]]] = [[] for _ in wholes]
        for (row, at), text in (*prompts.items(), *zip(others, texts, strict=True)):
            lengths[row].append((len(text), at))
        for row, whole in enumerate(wholes):
            if labelled[row].turns and not labelled[row].refused:
                self._row_by_marks(dialogues[row], whole, labelled[row], joined(marks[row]), sorted(lengths[row]))

    def _next_unlearned(self, dialogues: Sequence[Dialogue], labelled: Sequence[Labelled]) -> list[Turn]:
        found = []
        for row, dialogue in enumerate(dialogues):
            if labelled[row].turns:
                answers = dialogue.answers()
                learned = {at for at, _ in labelled[row].prompts}
                found += [(row, after) for at, after in pairwise(answers) if at in learned]
        return found

    def _row_by_marks(
        self, dialogue: Dialogue, whole: Whole, labelled: Labelled, marks: Sequence[Span], prompts: Sequence[tuple[int, int]]
    ) -> None:
        learned = {at for at, _ in labelled.prompts}
        everything = len(learned) == len(dialogue.answers())
        begins = [length for length, _ in prompts]
        by_turn: dict[int, list[Span]] = {}
        for span in marks:
            turn = bisect_left(begins, span[1]) - 1  # the last one whose prompt ends before the mark does
            at = prompts[turn][1] if turn >= 0 else -1
            if at in learned or (everything and at < 0):
                tokens = self.tokens.covering(whole, span)
                if tokens is None:
                    self._refuse(labelled, dialogue, max(at, 0), whole=whole, text=whole.text[: span[1]])
                    return
                by_turn.setdefault(at, []).append(tokens)
        labelled.spans += by_turn.pop(-1, [])
        for spans in by_turn.values():
            self._learn(labelled, spans)

    def _learn(self, labelled: Labelled, spans: Sequence[Span]) -> None:
        """An answer's spans; only the last one ends the turn."""
        *before, (begin, stop) = spans
        end, closed = self._learned_end(labelled.ids, begin, stop)
        labelled.spans += [*before, (begin, end)]
        if begin < end or before:
            labelled.marked += 1
            labelled.unclosed += not closed

    def _learned_end(self, ids: Sequence[int], begin: int, stop: int) -> tuple[int, bool]:
        """Where learning ends in a turn, and whether a special token stands there: blank tokens after one are left out."""
        end = stop
        while end > begin and self._is_blank(ids[end - 1]):
            end -= 1
        closed = end > begin and ids[end - 1] in self._special
        return (end, True) if closed else (stop, False)

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokens.tokenizer.decode([token]).strip()
        return self._blank[token]

    def _all(self, dialogue: Dialogue, whole: Whole) -> list[Span]:
        """Every token, but those that a message with `train: false` adds to the conversation before it."""
        spans, at = [], 0
        for message in sorted(dialogue.untrained):
            texts = self.template.beginnings([(dialogue, upto) for upto in (message, message + 1) if upto])
            counts = [self.tokens.prefix(whole, text) for text in ("", *texts)[-2:]]
            if message + 1 == len(dialogue.messages):
                counts[-1] = len(whole.ids)
            begin, end = counts
            if begin is None or end is None:
                raise no_prefix(dialogue, message)
            spans.append((at, begin))
            at = end
        return [*spans, (at, len(whole.ids))]


def joined(spans: Sequence[Span]) -> list[Span]:
    """Without empty ones, and those that touch as one."""
    found: list[Span] = []
    for begin, end in spans:
        if begin == end:
            continue
        if found and found[-1][1] == begin:
            found[-1] = found[-1][0], end
        else:
            found.append((begin, end))
    return found


def _check_reasoning(dialogue: Dialogue, at: int, written: str) -> None:
    reasoning: Any = dialogue.messages[at].get("reasoning_content")
    if reasoning and reasoning.strip() not in written:
        raise DataError(
            f"the chat template leaves out the reasoning of {_named(dialogue, at)}, which is to be learned",
            where=dialogue.row.where,
            fix="learn only the last turn with data.train_on: last, give the message `train: false`, or choose a template "
            "that keeps it",
        )


def no_prefix(dialogue: Dialogue, at: int) -> DataError:
    """The tokens before a message are not those that inference would give."""
    return DataError(
        f"the chat template lacks the prefix property: {_named(dialogue, at)} does not continue the tokens that inference "
        "would give for the messages before it",
        where=dialogue.row.where,
        fix=_PREFIX_FIX,
    )


def straddled(dialogue: Dialogue, at: int) -> DataError:
    """The texts before and after the edge of an answer become other tokens together than apart."""
    return DataError(
        f"{STRADDLED}, {_named(dialogue, at)}: inference would give other tokens there",
        where=dialogue.row.where,
        fix="take white space off the answer's beginning and end, leave such rows out with `data.bad_rows: drop`, or choose "
        "a chat template with special tokens around answers",
    )


def _named(dialogue: Dialogue, at: int) -> str:
    number = sum(message["role"] == "assistant" for message in dialogue.messages[: at + 1])
    return f"assistant turn {number} (messages[{at}])" if dialogue.messages[at]["role"] == "assistant" else f"messages[{at}]"
