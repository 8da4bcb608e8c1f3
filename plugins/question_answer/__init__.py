"""A question and its answer, with an optional context; and a question with options to choose from.

    {"question": "Which rock does lava form?", "answer": "Basalt."}
    {"context": "Lava cools into basalt.", "question": "Which rock?", "answers": {"text": ["basalt"]}}          SQuAD
    {"question": "Which is a rock?", "choices": ["oak", "basalt"], "answer": 1}                                 MMLU

The context stands before the question, with a blank line between. Where there are several answers the first is learned.
Follows https://huggingface.co/datasets/rajpurkar/squad and https://huggingface.co/datasets/cais/mmlu.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.extensions import DataFormat, Row, RowError
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.rows import assistant, filled_text, first_of, joined, missing, shown_type, user, with_system
from luthier.plugins.question_answer import choices

QUESTIONS: Final = ("question", "query", "problem")
ANSWERS: Final = ("answer", "answers", "correct_answer")
CONTEXTS: Final = ("context", "passage", "support")
# With these a row is another format's: it has a whole response, or tools, or says how good the answer is.
OTHERS: Final = (
    "response", "solution", "generated_solution", "label", "kto_tag", "chosen", "rejected", "prompt", "messages", "tools",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QuestionAnswerConfig:
    """What is asked of the model beside the question, and what a question without an answer means."""

    instruction: str = option("", "A request put before context and question.")
    unanswerable: str = option(
        "", "The answer to learn where the list of answers is empty (SQuAD 2.0); empty makes such a row an error."
    )


def detect(row: Row) -> bool:
    return (
        first_of(row, QUESTIONS) is not None
        and first_of(row, ANSWERS) is not None
        and first_of(row, OTHERS) is None
        and not choices.detect(row)
    )


def convert(row: Row, options: QuestionAnswerConfig) -> Row:
    """The canonical conversation; raises RowError naming the column that is missing, empty or of a wrong type."""
    question, answer = first_of(row, QUESTIONS), first_of(row, ANSWERS)
    if question is None or answer is None:
        raise missing(row, "answer" if question else "question")
    asked = joined(options.instruction, _context(row), filled_text(row, question).strip())
    text = first_answer(row[answer], answer) or options.unanswerable
    if not text.strip():
        raise RowError("is an empty answer", column=answer)
    return {"messages": with_system([user(asked), assistant(text)], row, ("system",))}


def first_answer(value: Any, column: str) -> str:
    """The first answer of a text, a truth value, a number, a list, or an object of lists; "" where there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return first_answer(value[0], f"{column}[0]") if value else ""
    if isinstance(value, Mapping):
        # SQuAD and AdversarialQA have text, TriviaQA value, DROP spans.
        key = first_of(value, ("text", "value", "spans"))
        if key is not None:
            return first_answer(value[key], f"{column}.{key}")
    elif value is None:
        return ""
    raise RowError(f"must be a string or a list of strings, not {shown_type(value)}", column=column)


def _context(row: Row) -> str:
    """The context: a text, a list of texts, or titles with sentences (HotpotQA) or `contexts` (PubMedQA)."""
    column = first_of(row, CONTEXTS)
    value = row[column] if column is not None else None
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and "title" in value and "sentences" in value:
        return "\n\n".join(_pages(value["title"], value["sentences"], str(column)))
    texts = value.get("contexts") if isinstance(value, Mapping) else value
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        return "\n\n".join(texts)
    raise RowError(f"must be a string or a list of strings, not {shown_type(value)}", column=str(column))


def _pages(titles: Any, sentences: Any, column: str) -> Iterable[str]:
    """Each title with its sentences below it."""
    for name, values in (("title", titles), ("sentences", sentences)):
        if not isinstance(values, list | tuple):
            raise RowError(f"must be a list, not {shown_type(values)}", column=f"{column}.{name}")
    if len(titles) != len(sentences):
        raise RowError(f"has {len(sentences)} lists for {len(titles)} titles", column=f"{column}.sentences")
    for index, (title, texts) in enumerate(zip(titles, sentences, strict=True)):
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in (title, *texts)):
            raise RowError("must be a title and a list of strings", column=f"{column}.sentences[{index}]")
        yield f"{title}\n{''.join(texts)}"


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="question_answer",
        summary="A question and its answer, with an optional context.",
        kind="conversation",
        columns="question, query or problem; answer, answers or correct_answer; optional context, passage or support",
        detect=detect,
        convert=convert,
        config=QuestionAnswerConfig,
        priority=-10,
    )
    yield DataFormat(
        name="multiple_choice",
        summary="A question, its options and which of them is right.",
        kind="conversation",
        columns=(
            "question, choices or options, and answer, answerKey or answer_idx, by number, letter or text; or the columns "
            "of HellaSwag, PIQA, WinoGrande, Social IQA, CosmosQA, MedMCQA"
        ),
        detect=choices.detect,
        convert=choices.convert,
        config=choices.MultipleChoiceConfig,
        priority=-10,
    )
