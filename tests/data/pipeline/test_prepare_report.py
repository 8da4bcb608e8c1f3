"""The account of the data: counts, warnings, errors, and where a run leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.config.schema import RunConfig, SourceConfig
from luthier.core.data.report import nothing_left, tally_warnings
from luthier.core.data.tally import Tally
from luthier.core.errors import DataError
from luthier.core.serial import to_plain

Write = Callable[..., Path]
Config = Callable[..., RunConfig]
Chat = Callable[..., dict[str, Any]]


def test_a_line_for_each_source(run: Any, jsonl: Write, config: Config, chat: Chat, account: Any) -> None:
    # <|user|> + n + <eos>\n + <|assistant|> + m + <eos>\n: n + m + 6 tokens.
    one = jsonl([chat("u" * n, "a") for n in (1, 2, 90)], "one.jsonl")
    two = jsonl([{"instruction": "z", "output": "a"}], "two.jsonl")
    whole = config(one, max_length=60)
    prepared = run(replace(whole, data=replace(whole.data, train=(*whole.data.train, SourceConfig(path=str(two))))))
    account(prepared)
    found = [to_plain(source) for source in prepared.report.sources]
    common = {"role": "train", "cut": 0, "cached": False}
    assert found == [
        {"name": found[0]["name"], "format": "messages", "rows": 3, "kept": 2, "dropped": 1, **common},
        {"name": found[1]["name"], "format": "alpaca", "rows": 1, "kept": 1, "dropped": 0, **common},
    ]
    assert ("one.jsonl" in found[0]["name"], "two.jsonl" in found[1]["name"]) == (True, True)
    assert (prepared.report.template, prepared.report.labels_from) == (
        "the model's own",
        "the template's generation marks",
    )
    assert json.loads(json.dumps(to_plain(prepared.report)))["sources"] == found


def test_duplicates_are_rows_whose_content_occurs_before(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    rows = [chat(f"question {number % 20}", "a") | {"id": number} for number in range(50)]
    other = jsonl([chat("question 3", "a"), chat("new", "a")], "other.jsonl")
    whole = config(jsonl(rows))
    assert run(whole).report.duplicates == 30
    both = replace(whole, data=replace(whole.data, train=(*whole.data.train, SourceConfig(path=str(other)))))
    assert run(both).report.duplicates == 31
    # Repeating on purpose makes no duplicates.
    assert run(config(other, source={"sample": 10})).report.duplicates == 0


@pytest.mark.parametrize(("how", "kept"), [("truncate_left", 4), ("truncate_right", 4), ("drop", 1)])
def test_cut_rows_are_counted_and_said(
    run: Any, jsonl: Write, config: Config, chat: Chat, account: Any, how: str, kept: int
) -> None:
    rows = [chat("u" * n, "a" * n) for n in (2, 30, 31, 32)]
    prepared = run(config(jsonl(rows), max_length=40, too_long=how))
    account(prepared)
    report = prepared.report
    assert (report.rows, report.kept, report.longest) == (4, kept, 40 if kept > 1 else 10)
    counts, verb = (report.dropped, "dropped") if how == "drop" else (report.cut, "cut")
    assert max(counts.values()) == 3
    (warning,) = [text for text in report.warnings if "were" in text]
    assert "of 4 rows" in warning
    assert f"were {verb}: " in warning
    assert all(f"{count} {verb} ({reason})" in warning for reason, count in counts.items())
    assert prepared.report.sources[0].cut == (0 if how == "drop" else 3)
    assert f"3 of 4 rows (75%) were {verb}" in warning


def test_over_five_per_cent_is_a_warning_and_five_is_none() -> None:
    tally = Tally(rows=100, kept=95)
    tally.dropped.update({"too long": 3, "odd": 2})
    assert list(tally_warnings(tally)) == []
    tally.dropped.update({"odd": 1})
    assert list(tally_warnings(tally)) == ["6 of 100 rows (6%) were dropped: 3 dropped (too long), 3 dropped (odd)"]
    # A row that was cut has two reasons, and is one row.
    tally = Tally(rows=100, kept=100, cut_rows=5)
    tally.cut.update({"too long": 5, "no end": 4})
    assert list(tally_warnings(tally)) == []
    tally.cut_rows = 6
    assert list(tally_warnings(tally)) == ["6 of 100 rows (6%) were cut: 5 cut (too long), 4 cut (no end)"]
    sampled = Tally(rows=100, kept=10)
    sampled.dropped["not sampled"] = 90
    assert list(tally_warnings(sampled)) == []


def test_remarks_and_answers_are_said() -> None:
    tally = Tally(rows=10, kept=10, turns=5, marked=4, unclosed=2)
    tally.notes["roles do not alternate"] = 3
    assert list(tally_warnings(tally)) == [
        "3 of 10 rows: roles do not alternate",
        "the chat template marks 4 of 5 answers to be learned",
        "2 of 4 answers end with no end-of-turn token: the model may not learn to stop",
    ]


def test_nothing_left_says_the_counts_and_what_to_do() -> None:
    tally = Tally(rows=5, shortest_dropped=77)
    tally.dropped.update({"longer than 60 tokens": 3, "no token to learn": 2})
    error = nothing_left(["a.jsonl", "b.jsonl"], tally, "prefix comparison")
    counts = "3 dropped (longer than 60 tokens), 2 dropped (no token to learn)"
    assert error.message == f"no row is left to learn from; of 5 read, {counts}"
    assert (error.where, error.fix) == (
        "a.jsonl, b.jsonl",
        "raise data.max_length: the shortest row that was dropped has 77 tokens",
    )
    kept = nothing_left(["a"], Tally(rows=4, kept=4), "prefix comparison")
    assert kept.message == "no token is left to learn from; of 4 read, 4 kept without a token to learn"
    assert "prefix comparison" in kept.fix


def test_counts_of_parts_add_up(run: Any) -> None:
    one = Tally(rows=3, kept=2, turns=4, shortest_dropped=90)
    two = Tally(rows=1, cut_rows=1, marked=1, shortest_dropped=70)
    one.dropped["x"] = 1
    two.dropped.update({"x": 2, "y": 1})
    one += two
    assert (one.rows, one.kept, one.turns, one.marked, one.cut_rows, one.shortest_dropped) == (4, 2, 4, 1, 1, 70)
    assert one.dropped == {"x": 3, "y": 1}
    assert Tally.from_plain(json.loads(json.dumps(one.to_plain()))) == one


def test_bad_rows_stop_or_are_counted(run: Any, jsonl: Write, config: Config, chat: Chat, account: Any) -> None:
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}
    path = jsonl([chat("a", "b"), bad, chat("c", "d"), bad])
    with pytest.raises(DataError) as caught:
        run(config(path))
    assert caught.value.where == f"{path}:2, column messages[1].role"
    prepared = run(config(path, bad_rows="drop"))
    account(prepared)
    assert (prepared.report.kept, list(prepared.report.dropped.values())) == (2, [2])
    assert any("of 4 rows (50%) were dropped" in warning for warning in prepared.report.warnings)


def test_only_bad_rows(run: Any, jsonl: Write, config: Config) -> None:
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 7}]}
    good_first = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "u" * 99}]}
    with pytest.raises(DataError, match=r"no row is left to learn from; of 3 read, .*2 dropped") as caught:
        run(config(jsonl([good_first, bad, bad]), bad_rows="drop", max_length=20))
    assert "the shortest row that was dropped has 106 tokens" in caught.value.fix
