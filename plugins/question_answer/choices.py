"""Multiple choice: the question, its options by letter, and the right one as the answer.

    Which is a rock?            the answer, as the option `answer` says:    both      B. basalt
                                                                            letter    B
    A. oak                                                                  text      basalt
    B. basalt

The right option is given by its number from 0 (MMLU), its letter (ARC, RACE), or its text. Some data sets have columns of
their own, see OWN_COLUMNS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Final, Literal

from luthier.core.extensions import Row, RowError
from luthier.core.options import option
from luthier.core.rows import assistant, filled_text, first_of, joined, missing, optional_text, shown_type, text_of, user

QUESTIONS: Final = ("question", "question_stem", "query")
OPTIONS: Final = ("choices", "options")
ANSWERS: Final = ("answerKey", "answer_idx", "answer_index", "answer", "correct", "correct_option", "label")
CONTEXTS: Final = ("context", "article", "passage")
LETTER: Final = re.compile(r"^\(?([A-Z])\s*[).:]\s*")  # "A)21", "(A) 21", "A. 21"


@dataclass(frozen=True, kw_only=True)
class Own:
    """The columns of a data set that has a column for each option; the number in `answer` begins at `first`."""

    question: str
    options: tuple[str, ...]
    answer: str
    first: int = 0
    context: str = ""


# The endings of HellaSwag are in one column.
OWN_COLUMNS: Final = (
    Own(question="ctx", options=("endings",), answer="label"),
    Own(question="goal", options=("sol1", "sol2"), answer="label"),  # PIQA
    Own(question="sentence", options=("option1", "option2"), answer="answer", first=1),  # WinoGrande
    Own(
        question="question", options=("answerA", "answerB", "answerC"), answer="label", first=1, context="context"
    ),  # Social IQA
    Own(
        question="question", options=("answer0", "answer1", "answer2", "answer3"), answer="label", context="context"
    ),  # CosmosQA
    Own(question="question", options=("opa", "opb", "opc", "opd"), answer="cop"),  # MedMCQA
)


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceConfig:
    """How the question is put and answered."""

    answer: Literal["both", "letter", "text"] = option(
        "both", "What is learned: the right option's letter with its text, the letter alone, or the text alone."
    )
    instruction: str = option("", "A request put before the question.")


def detect(row: Row) -> bool:
    if any(own.question in row and own.answer in row and all(map(row.__contains__, own.options)) for own in OWN_COLUMNS):
        return True
    options = row.get(first_of(row, OPTIONS) or "")
    return (
        first_of(row, QUESTIONS) is not None
        and first_of(row, ANSWERS) is not None
        and isinstance(options, list | tuple | Mapping)
    )


def convert(row: Row, options: MultipleChoiceConfig) -> Row:
    """The canonical conversation; raises RowError naming the column that is missing or points at no option."""
    question, context, letters, texts, right = _own(row) or _general(row)
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    answers = {"both": f"{letters[right]}. {texts[right]}", "letter": letters[right], "text": texts[right]}
    return {"messages": [user(joined(options.instruction, context, question, listed)), assistant(answers[options.answer])]}


Choice = tuple[str, str, Sequence[str], Sequence[str], int]


def _own(row: Row) -> Choice | None:
    for own in OWN_COLUMNS:
        if own.question in row and own.answer in row and all(map(row.__contains__, own.options)):
            one_column = len(own.options) == 1
            texts = (
                _texts(row[own.options[0]], own.options[0]) if one_column else [text_of(row, name) for name in own.options]
            )
            right = _number(row[own.answer], own.answer, len(texts), own.first)
            context = optional_text(row, own.context or None)
            return filled_text(row, own.question).strip(), context, ascii_uppercase[: len(texts)], texts, right
    return None


def _general(row: Row) -> Choice:
    question, column, answer = first_of(row, QUESTIONS), first_of(row, OPTIONS), first_of(row, ANSWERS)
    for found, name in ((question, QUESTIONS[0]), (column, OPTIONS[0]), (answer, "answer")):
        if found is None:
            raise missing(row, name)
    question, column, answer = str(question), str(column), str(answer)
    value = row[column]
    if isinstance(value, Mapping) and "text" in value and "label" in value:  # ARC, CommonsenseQA, OpenBookQA
        texts, letters = _texts(value["text"], f"{column}.text"), [str(label) for label in value["label"]]
        if len(letters) != len(texts):
            raise RowError(f"has {len(letters)} labels for {len(texts)} options", column=f"{column}.label")
    elif isinstance(value, Mapping):  # MedQA: {"A": ..., "B": ...}; a table's columns that a row has not got are null
        kept = {str(letter): text for letter, text in value.items() if text is not None}
        texts, letters = _texts(list(kept.values()), column), list(kept)
    else:
        texts = _texts(value, column)
        letters = list(ascii_uppercase[: len(texts)])
        marks = [LETTER.match(text) for text in texts]
        if [mark and mark[1] for mark in marks] == letters:  # AQuA-RAT: "A)21"
            texts = [LETTER.sub("", text) for text in texts]
    context = optional_text(row, first_of(row, CONTEXTS))
    return filled_text(row, question).strip(), context, letters, texts, _right(row[answer], answer, letters, texts)


def _texts(value: Any, column: str) -> list[str]:
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a list of options, not {shown_type(value)}", column=column)
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise RowError(f"must be a string, not {shown_type(text)}", column=f"{column}[{index}]")
    if not 2 <= len(value) <= len(ascii_uppercase):
        raise RowError(f"has {len(value)} options, and a choice is between 2 to {len(ascii_uppercase)}", column=column)
    return list(value)


def _right(value: Any, column: str, letters: Sequence[str], texts: Sequence[str]) -> int:
    if isinstance(value, str):
        for names in (letters, texts):
            if value.strip() in names:
                return names.index(value.strip())
    return _number(value, column, len(texts), 0)


def _number(value: Any, column: str, count: int, first: int) -> int:
    """The option's place: `value` is a number, or a text of digits, counted from `first`."""
    digits = value.strip() if isinstance(value, str) else str(value) if type(value) is int else ""
    if not digits.isdecimal():
        raise RowError(f"names no option by letter, text or number; it is {value!r:.40}", column=column)
    place = int(digits) - first
    if not 0 <= place < count:
        raise RowError(f"names no option; it is {value!r}, and they are {first} to {first + count - 1}", column=column)
    return place
