"""Kinds of data besides conversations: texts, preferences, rated answers, prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.catalog import Offer, Provider
from luthier.core.config.schema import Choice, RunConfig
from luthier.core.errors import DataError
from luthier.core.extensions import DataFormat, Row

Write = Callable[..., Path]
Config = Callable[..., RunConfig]


def as_it_is(row: Row) -> Row:
    return row


@pytest.fixture
def given(run: Any, jsonl: Write, config: Config) -> Callable[..., Any]:
    """`given("text", rows, **data)`: rows that are canonical already, prepared."""

    def prepared(kind: Any, rows: list[Any], **data: Any) -> Any:
        plain = DataFormat(name="plain", summary="", kind=kind, columns="", detect=lambda row: False, convert=as_it_is)
        run.formats["plain"] = Offer(value=plain, provider=Provider(plugin="plain"))
        return run(config(jsonl(rows), source={"format": Choice(use="plain")}, **data), kind)

    return prepared


def say(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def test_texts_are_learned_whole(given: Any, account: Any) -> None:
    prepared = given("text", [{"text": "one"}, {"text": "three"}])
    account(prepared)
    # Bytes and the end; the first token is predicted from nothing.
    assert prepared.train.lengths.tolist() == [4, 6]
    assert prepared.report.trained_tokens == 3 + 5
    assert prepared.report.template == ""


def test_split_texts_are_rows_that_stay_together(given: Any, account: Any) -> None:
    rows = [{"text": f"{number:02}" * 12} for number in range(30)] + [{"text": "short"}, {"text": "short"}]
    prepared = given("text", rows, max_length=10, too_long="split", eval=0.25)
    account(prepared)
    # 24 bytes and the end are 10 + 10 + 5 tokens.
    assert (prepared.report.added, prepared.report.rows) == ({"parts of rows that were split": 60}, 32)
    assert (prepared.report.kept + prepared.report.held_out, prepared.report.duplicates) == (92, 1)
    assert not set(prepared.train.keys.tolist()) & set(prepared.eval.keys.tolist())
    assert len(prepared.eval) > 0


def test_a_preference_is_two_sequences_of_one_row(given: Any, account: Any) -> None:
    rows = [
        {"messages": say("hi"), "chosen": say("", "yes")[1:], "rejected": say("", "nope")[1:], "margin": 0.5},
        {"messages": say("ho"), "chosen": say("", "a")[1:], "rejected": say("", "bb")[1:]},
    ] + [{"messages": say(f"{n}"), "chosen": say("", "c")[1:], "rejected": say("", "d")[1:]} for n in range(8)]
    prepared = given("preference", rows, eval=3)
    account(prepared)
    assert (prepared.report.kept, prepared.report.held_out, len(prepared.train), len(prepared.eval)) == (7, 3, 14, 6)
    whole = given("preference", rows).train
    assert whole.per_row == 2
    learned = [int((example["labels"] != -100).sum()) for example in whole]
    assert learned[:4] == [3 + 1, 4 + 1, 1 + 1, 2 + 1]
    assert np.array_equal(whole.values[:2], np.array([0.5, np.nan], np.float32), equal_nan=True)


def test_rated_answers_have_their_rating(given: Any, account: Any) -> None:
    rows = [{"messages": say("q"), "completion": say("", f"{n}")[1:], "label": n % 2 == 0} for n in range(4)]
    prepared = given("unpaired", rows)
    account(prepared)
    assert prepared.train.values.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_prompts_have_nothing_to_learn_and_are_kept(given: Any, account: Any) -> None:
    prepared = given("prompt", [{"messages": say("what?")}, {"messages": say("why?")}])
    account(prepared)
    assert (prepared.report.kept, prepared.report.trained_tokens) == (2, 0)


def test_prompts_keep_what_answers_are_judged_by(given: Any, account: Any) -> None:
    rows = [{"messages": say(f"q{number}"), "reference": f"r{number}"} for number in range(8)]
    rows[3]["reference"] = {"value": 3, "unit": "ü"}
    del rows[5]["reference"]
    prepared = given("prompt", rows, eval=2)
    account(prepared)
    for part in (prepared.train, prepared.eval):
        for row in range(part.rows):
            said = part.beside(row)["messages"][-1]["content"]
            number = int(said[1:])
            expected = {3: '{"value": 3, "unit": "ü"}', 5: None}.get(number, f"r{number}")
            assert part.reference(row) == expected
    assert (prepared.train.rows, prepared.eval.rows) == (6, 2)
    # No token of a reference counts: prompts of the same text are as long without one.
    without = given("prompt", [{"messages": row["messages"]} for row in rows])
    assert without.report.tokens == prepared.report.tokens + prepared.report.held_out_tokens
    assert prepared.report.trained_tokens == 0


def test_rows_that_differ_in_their_reference_are_no_copies(given: Any) -> None:
    rows = [{"messages": say("q"), "reference": "a"}, {"messages": say("q"), "reference": "b"}, {"messages": say("q")}]
    prepared = given("prompt", rows)
    assert prepared.report.duplicates == 0
    assert prepared.train.digest != given("prompt", rows[::-1]).train.digest


def test_an_empty_prompt_is_refused_with_its_place(given: Any) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:2, column messages\[0\].content: is an empty prompt"):
        given("prompt", [{"messages": say("hi")}, {"messages": say(" ")}])


def test_rows_of_another_kind(given: Any, run: Any, jsonl: Write, config: Config) -> None:
    given("text", [{"text": "one"}])
    path = jsonl([{"text": "one"}])
    with pytest.raises(DataError, match="plain hold text data, and the stage learns from conversation data"):
        run(config(path, source={"format": Choice(use="plain")}))
