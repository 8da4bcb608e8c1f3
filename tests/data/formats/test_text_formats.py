"""plugins/text: raw text, and conversations written down as text."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.plugins import text
from luthier.plugins.text.transcript import TranscriptConfig, convert


@pytest.mark.parametrize("column", ["text", "raw_content", "content"])
def test_raw_text(column: str) -> None:
    row = {"url": "https://example.org", column: " Basalt.\n"}
    assert text.detect(row)
    assert text.convert(row) == {"text": " Basalt.\n"}


def test_text_wins_over_content() -> None:
    assert text.convert({"content": "menu", "text": "Basalt."}) == {"text": "Basalt."}


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"url": "a"}, "text", "is missing; the row has: url"),
        ({"text": ""}, "text", "is empty"),
        ({"content": None}, "content", "not null"),
        ({"text": ["a"]}, "text", "not a list"),
    ],
)
def test_what_is_no_text(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        text.convert(row)
    assert caught.value.column == column
    assert not text.detect({"text": ["a"]})


def test_a_single_message_is_no_raw_text() -> None:
    """Rows of OpenAssistant/oasst1 are the nodes of trees of messages."""
    assert not text.detect({"message_id": "a1", "parent_id": None, "role": "prompter", "text": "Hi"})
    assert not text.detect({"role": "user", "content": "Hi"})


def test_a_transcript_is_cut_at_its_marks() -> None:
    row = {
        "text": "### System: Be brief. ### Human: Hi\nthere ### Assistant: Hello!### Human: Bye### Assistant: Bye: ### done."
    }
    assert [(turn["role"], turn["content"]) for turn in convert(row, TranscriptConfig())["messages"]] == [
        ("system", "Be brief."), ("user", "Hi\nthere"), ("assistant", "Hello!"), ("user", "Bye"),
        ("assistant", "Bye: ### done."),
    ]  # fmt: skip


def test_a_transcript_with_marks_of_its_own() -> None:
    options = TranscriptConfig(user="<human>:", assistant="<bot>:")
    turns = convert({"text": "<human>: Hi\n<bot>: (### Human: ) Hello!\n"}, options)["messages"]
    assert turns == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "(### Human: ) Hello!"}]


def test_a_mark_may_begin_like_another() -> None:
    options = TranscriptConfig(user="Q", assistant="QA", system="S")
    assert [turn["role"] for turn in convert({"text": "Q one QA two"}, options)["messages"]] == ["user", "assistant"]


def test_marks_are_taken_literally() -> None:
    options = TranscriptConfig(user="[u]", assistant="(a)")
    assert [turn["content"] for turn in convert({"text": "[u] u a (a) b"}, options)["messages"]] == ["u a", "b"]


@pytest.mark.parametrize("written", ["Just a text.", "Hi ### Human: Hi"])
def test_a_text_that_does_not_begin_with_a_mark(written: str) -> None:
    with pytest.raises(RowError, match="begins with none of the marks '### Human:'"):
        convert({"text": written}, TranscriptConfig())


@pytest.mark.parametrize("marks", [{"user": "### Assistant:"}, {"user": " "}])
def test_marks_that_cannot_be_told_apart(marks: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="three different marks"):
        TranscriptConfig(**marks)


def test_a_transcript_is_never_detected() -> None:
    formats = {item.name: item for item in text.luthier_data_formats()}
    row = {"text": "### Human: Hi### Assistant: Hello!"}
    assert formats["text"].detect(row)
    assert not formats["transcript"].detect(row)
