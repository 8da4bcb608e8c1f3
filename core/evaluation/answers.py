"""Held-out conversations as questions: what stands before the last learned turn is the prompt, that turn the reference.

    input_ids   <user> What is 2 + 2? <end> <assistant> It is 4 . <end>
    labels      -100 -100 ...                           It is 4 . <end>
                |----------- prompt ----------------|   |- reference -|

The rows are those of the loss, tokenised by the data worker, so a prompt is exactly what a chat would send.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from luthier.core.data.examples import IGNORED, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.core.evaluation.metrics import TextMetrics

NO_TURN: Final = "no learned turn"
NO_PROMPT: Final = "nothing stands before the learned turn"
NO_ROOM: Final = "prompt and answer would be longer than the model's context"


@dataclass(frozen=True)
class Question:
    """`row` is its place among the examples."""

    row: int
    prompt: list[int]
    reference: str


@dataclass
class Questions:
    """What can be asked of the rows; `left_out` says of each other row why it cannot."""

    asked: list[Question] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows are left out for each reason."""
        return dict(Counter(self.left_out.values()))


@dataclass(frozen=True)
class Answered:
    """A question with the model's answer and its metrics. `finished` says that it came to an end token."""

    question: Question
    prediction: str
    finished: bool
    metrics: dict[str, float]


def questions(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    *,
    max_new_tokens: int,
    context: int | None,
    at_most: int | None = None,
) -> Questions:
    """The questions of the examples in order, `at_most` so many. `ends` are the tokens that end an answer.

    A prompt that leaves no room for `max_new_tokens` in a `context` of so many tokens is left out.
    """
    found = Questions()
    for row, example in enumerate(examples):
        if at_most is not None and len(found.asked) == at_most:
            break
        turn = last_turn(example)
        if turn is None:
            found.left_out[row] = NO_TURN
        elif turn[0] == 0:
            found.left_out[row] = NO_PROMPT
        elif context is not None and turn[0] + max_new_tokens > context:
            found.left_out[row] = NO_ROOM
        else:
            ids = example["input_ids"].tolist()
            found.asked.append(Question(row, ids[: turn[0]], text_of(ids[turn[0] : turn[1]], tokenizer, ends)))
    return found


def last_turn(example: Example) -> tuple[int, int] | None:
    """Where the last run of learned tokens begins and ends; None where nothing is learned."""
    learned = np.flatnonzero(example["labels"] != IGNORED)
    if not len(learned):
        return None
    breaks = np.flatnonzero(np.diff(learned) > 1)
    begin = int(learned[breaks[-1] + 1]) if len(breaks) else int(learned[0])
    return begin, int(learned[-1]) + 1


def text_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> str:
    """The text up to the first end token. Other special tokens are written out: what a model should not say, it said."""
    from luthier.core.generation import cut

    answer = cut(ids, ends)
    kept = answer.ids[:-1] if answer.finished else answer.ids
    text: Any = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def answered(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    metrics: TextMetrics,
    *,
    max_new_tokens: int,
    batch_tokens: int,
) -> list[Answered]:
    """The model's likeliest answers, token by token (greedy), each with its metrics."""
    from luthier.core.generation import Sampling, end_tokens, generate

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    given = generate(model, tokenizer, [one.prompt for one in asked], sampling, batch_tokens=batch_tokens)
    ends = end_tokens(model, tokenizer)
    made = []
    for question, answer in zip(asked, given, strict=True):
        prediction = text_of(answer.ids, tokenizer, ends)
        made.append(Answered(question, prediction, answer.finished, metrics.row(prediction, question.reference)))
    return made


def totals(answers: Sequence[Answered], metrics: TextMetrics) -> dict[str, float]:
    """The metrics of all answers, and `unfinished`: the part that `max_new_tokens` cut short."""
    if not answers:
        return {}
    predictions, references = [one.prediction for one in answers], [one.question.reference for one in answers]
    unfinished = sum(not one.finished for one in answers) / len(answers)
    return {**metrics.total([one.metrics for one in answers], predictions, references), "unfinished": unfinished}
