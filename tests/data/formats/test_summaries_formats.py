"""plugins/summaries: texts with their summaries, and translations."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.plugins import summaries
from luthier.plugins.summaries import SummariesConfig, translation
from luthier.plugins.summaries.translation import TranslationConfig


def asked(row: dict[str, Any], **options: Any) -> str:
    assert summaries.detect(row)
    question, answer = summaries.convert(row, SummariesConfig(**options))["messages"]
    assert (question["role"], answer) == ("user", {"role": "assistant", "content": "Short."})
    return str(question["content"])


@pytest.mark.parametrize(
    ("text", "summary", "request_"),
    [
        ("dialogue", "summary", "Summarize the following conversation."),
        ("transcript", "summary", "Summarize the following conversation."),
        ("article", "highlights", "Summarize the following text."),
        ("article", "abstract", "Write an abstract of the following article."),
        ("article", "summary", "Summarize the following text."),
        ("description", "abstract", "Write an abstract of the following patent description."),
        ("document", "summary", "Summarize the following text."),
        ("report", "summary", "Summarize the following report."),
        ("chapter", "summary", "Summarize the following text."),
        ("text", "summary", "Summarize the following text."),
        ("email_body", "subject_line", "Write a subject line for the following e-mail."),
    ],
)
def test_each_pair_with_its_request(text: str, summary: str, request_: str) -> None:
    assert asked({"id": "1", text: "A long text.", summary: "Short."}) == f"{request_}\n\nA long text."


def test_the_content_of_an_advertisement_is_the_whole_request() -> None:
    assert asked({"content": "A long text.", "summary": "Short."}) == "A long text."


def test_a_request_of_ones_own_and_none() -> None:
    row = {"document": "A long text.", "summary": "Short."}
    assert asked(row, instruction="In one word:") == "In one word:\n\nA long text."
    assert asked(row, instruction="") == "A long text."


def test_a_row_with_an_instruction_of_its_own_is_not_taken() -> None:
    assert not summaries.detect({"instruction": "Say it.", "document": "a", "summary": "b"})


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"document": "a"}, "summary", "is missing; the row has: document"),
        ({"document": "", "summary": "b"}, "document", "is empty"),
        ({"document": "a", "summary": " "}, "summary", "is an empty answer"),
        ({"document": ["a"], "summary": "b"}, "document", "not a list"),
    ],
)
def test_what_is_no_summary(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        summaries.convert(row, SummariesConfig())
    assert caught.value.column == column


ROCK = {"translation": {"de": "Ein Gestein.", "en": "A rock.", "xx": "Ro."}}


@pytest.mark.parametrize(
    ("options", "question", "answer"),
    [
        ({}, "Translate from German to English.\n\nEin Gestein.", "A rock."),
        ({"source": "en", "target": "de"}, "Translate from English to German.\n\nA rock.", "Ein Gestein."),
        ({"source": "de", "target": "xx"}, "Translate from German to xx.\n\nEin Gestein.", "Ro."),
        ({"instruction": "Auf {target}:"}, "Auf English:\n\nEin Gestein.", "A rock."),
        ({"instruction": ""}, "Ein Gestein.", "A rock."),
    ],
)
def test_directions(options: dict[str, str], question: str, answer: str) -> None:
    assert translation.detect(ROCK)
    assert translation.convert(ROCK, TranslationConfig(**options)) == {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    }


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"de": "a"}, "translation", "is missing"),
        ({"translation": "a"}, "translation", "must be an object"),
        ({"translation": {"de": "a"}}, "translation", "needs two languages, and has: de"),
        ({"translation": {"de": "", "en": "b"}}, "translation.de", "is empty"),
        ({"translation": {"de": "a", "en": None}}, "translation.en", "not null"),
    ],
)
def test_what_is_no_translation(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        translation.convert(row, TranslationConfig())
    assert caught.value.column == column


def test_a_language_that_the_row_has_not_got() -> None:
    with pytest.raises(RowError, match="is missing") as caught:
        translation.convert(ROCK, TranslationConfig(source="fr", target="de"))
    assert caught.value.column == "translation.fr"


@pytest.mark.parametrize("options", [{"source": "en"}, {"target": "en"}, {"source": "en", "target": "en"}])
def test_a_direction_has_two_ends(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="two languages"):
        TranslationConfig(**options)
