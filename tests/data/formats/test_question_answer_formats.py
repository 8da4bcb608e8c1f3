"""plugins/question_answer: questions with answers and contexts, and multiple choice in the shapes of public data sets."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.plugins import question_answer
from luthier.plugins.question_answer import QuestionAnswerConfig, choices
from luthier.plugins.question_answer.choices import MultipleChoiceConfig


def said(row: dict[str, Any], **options: Any) -> tuple[str, str]:
    assert question_answer.detect(row)
    question, answer = question_answer.convert(row, QuestionAnswerConfig(**options))["messages"]
    assert (question["role"], answer["role"]) == ("user", "assistant")
    return question["content"], answer["content"]


@pytest.mark.parametrize("question", ["question", "query", "problem"])
@pytest.mark.parametrize("answer", ["answer", "answers", "correct_answer"])
def test_names(question: str, answer: str) -> None:
    assert said({question: " Which rock? ", answer: "Basalt."}) == ("Which rock?", "Basalt.")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Basalt.", "Basalt."),
        (True, "Yes"),
        (False, "No"),
        (42, "42"),
        (0.5, "0.5"),
        (["basalt", "a rock"], "basalt"),
        ({"text": ["basalt", "a rock"], "answer_start": [3, 9]}, "basalt"),
        ({"value": "Basalt", "aliases": ["a rock"]}, "Basalt"),
        ({"spans": ["2", "3"], "types": ["number", "number"]}, "2"),
    ],
)
def test_the_first_answer_is_learned(value: Any, text: str) -> None:
    assert said({"question": "Which?", "answer": value})[1] == text


@pytest.mark.parametrize(
    ("context", "text"),
    [
        ("Lava cools.", "Lava cools."),
        (["Lava cools.", "It is hot."], "Lava cools.\n\nIt is hot."),
        (
            {"title": ["Lava", "Oak"], "sentences": [["It cools.", " Slowly."], ["A tree."]]},
            "Lava\nIt cools. Slowly.\n\nOak\nA tree.",
        ),
        ({"contexts": ["We asked.", "We counted."], "labels": ["AIMS", "RESULTS"]}, "We asked.\n\nWe counted."),
    ],
)
@pytest.mark.parametrize("column", ["context", "passage", "support"])
def test_the_context_stands_before_the_question(column: str, context: Any, text: str) -> None:
    assert said({"question": "Which?", column: context, "answer": "b"})[0] == f"{text}\n\nWhich?"


def test_no_context_leaves_no_gap() -> None:
    assert said({"question": "Which?", "context": None, "answer": "b"})[0] == "Which?"


def test_a_request_of_ones_own() -> None:
    row = {"question": "Which?", "context": "Lava.", "answer": "b"}
    assert said(row, instruction="Answer in one word.")[0] == "Answer in one word.\n\nLava.\n\nWhich?"


def test_unanswerable() -> None:
    row = {"question": "Which?", "answers": {"text": [], "answer_start": []}}
    assert said(row, unanswerable="Unknown.")[1] == "Unknown."
    with pytest.raises(RowError, match="is an empty answer"):
        question_answer.convert(row, QuestionAnswerConfig())


PAGES = {"question": "Which?", "answer": "b"}


@pytest.mark.parametrize("column", ["response", "solution", "label", "chosen", "prompt", "messages", "options", "tools"])
def test_rows_that_say_more_are_not_taken(column: str) -> None:
    assert not question_answer.detect({"question": "a", "answer": "b", column: ["c", "d"]})


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"answer": "b"}, "question", "is missing"),
        ({"question": "a"}, "answer", "is missing"),
        ({"question": "", "answer": "b"}, "question", "is empty"),
        ({"question": "a", "answer": None}, "answer", "is an empty answer"),
        ({"question": "a", "answer": {"note": "b"}}, "answer", "must be a string or a list of strings, not an object"),
        ({"question": "a", "answer": [["b", 3], "c"], "context": 4}, "context", "not a number"),
        ({"question": "a", "answer": [{"n": 1}]}, "answer[0]", "not an object"),
        (PAGES | {"context": {"title": 3, "sentences": [[]]}}, "context.title", "must be a list, not a number"),
        (PAGES | {"context": {"title": ["t"], "sentences": None}}, "context.sentences", "must be a list, not null"),
        (PAGES | {"context": {"title": ["t"], "sentences": [["a", 1]]}}, "context.sentences[0]", "a list of strings"),
        (PAGES | {"context": {"title": ["t", "u"], "sentences": [["a"]]}}, "context.sentences", "has 1 lists for 2 titles"),
    ],
)
def test_what_is_wrong(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        question_answer.convert(row, QuestionAnswerConfig())
    assert caught.value.column == column


LISTED = "Which?\n\nA. oak\nB. basalt"


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which?", "choices": ["oak", "basalt"], "answer": 1},
        {"question": "Which?", "choices": ["oak", "basalt"], "answer": "B"},
        {"question": "Which?", "options": ["oak", "basalt"], "answer": "basalt"},
        {"question": "Which?", "options": ["oak", "basalt"], "label": "1"},
        {"question": "Which?", "options": ["A) oak", "B) basalt"], "correct": "B"},
        {"question": "Which?", "options": {"A": "oak", "B": "basalt", "C": None}, "answer": "basalt", "answer_idx": "B"},
        {"question_stem": "Which?", "choices": {"text": ["oak", "basalt"], "label": ["A", "B"]}, "answerKey": "B"},
        {"query": "Which?", "options": ["oak", "basalt"], "correct_option": 1},
        {"ctx": "Which?", "endings": ["oak", "basalt"], "label": "1"},
        {"goal": "Which?", "sol1": "oak", "sol2": "basalt", "label": 1},
        {"sentence": "Which?", "option1": "oak", "option2": "basalt", "answer": "2"},
    ],
)
def test_shapes_of_a_choice(row: dict[str, Any]) -> None:
    assert choices.detect(row)
    question, answer = choices.convert(row, MultipleChoiceConfig())["messages"]
    assert (question["content"], answer["content"]) == (LISTED, "B. basalt")


def test_letters_of_the_row_are_kept() -> None:
    row = {"question": "Which?", "choices": {"text": ["oak", "basalt"], "label": ["1", "2"]}, "answerKey": "2"}
    question, answer = choices.convert(row, MultipleChoiceConfig())["messages"]
    assert (question["content"], answer["content"]) == ("Which?\n\n1. oak\n2. basalt", "2. basalt")


def test_only_marks_that_count_up_are_taken_off() -> None:
    row = {"question": "Who?", "options": ["A. Lincoln", "E. Musk"], "answer": 0}
    assert choices.convert(row, MultipleChoiceConfig())["messages"][1]["content"] == "A. A. Lincoln"


@pytest.mark.parametrize(("answer", "text"), [("both", "B. basalt"), ("letter", "B"), ("text", "basalt")])
def test_what_is_learned(answer: Any, text: str) -> None:
    row = {"question": "Which?", "context": "Rocks.", "choices": ["oak", "basalt"], "answer": 1}
    question, learned = choices.convert(row, MultipleChoiceConfig(answer=answer, instruction="Choose."))["messages"]
    assert (question["content"], learned["content"]) == (f"Choose.\n\nRocks.\n\n{LISTED}", text)


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"choices": ["a", "b"], "answer": 1}, "question", "is missing"),
        ({"question": "a", "choices": ["a", "b"]}, "answer", "is missing"),
        ({"question": "a", "choices": "b", "answer": 1}, "choices", "must be a list of options, not a string"),
        ({"question": "a", "choices": ["b"], "answer": 0}, "choices", "has 1 options"),
        ({"question": "a", "choices": ["b", 3], "answer": 0}, "choices[1]", "must be a string, not a number"),
        ({"question": "a", "choices": ["b", "c"], "answer": 2}, "answer", "it is 2, and they are 0 to 1"),
        ({"question": "a", "choices": ["b", "c"], "answer": -1}, "answer", "names no option by letter"),
        ({"question": "a", "choices": ["b", "c"], "answer": True}, "answer", "names no option by letter"),
        (
            {"question": "a", "choices": ["b", "c"], "answer": "D"},
            "answer",
            "names no option by letter, text or number; it is 'D'",
        ),
        (
            {"question": "a", "choices": {"text": ["b", "c"], "label": ["A"]}, "answer": "A"},
            "choices.label",
            "1 labels for 2",
        ),
        ({"ctx": "a", "endings": ["b", "c"], "label": ""}, "label", "names no option by letter"),
        ({"sentence": "a", "option1": "b", "option2": "c", "answer": "0"}, "answer", "they are 1 to 2"),
        ({"goal": "a", "sol1": "b", "sol2": None, "label": 0}, "sol2", "not null"),
    ],
)
def test_what_is_no_choice(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        choices.convert(row, MultipleChoiceConfig())
    assert caught.value.column == column
