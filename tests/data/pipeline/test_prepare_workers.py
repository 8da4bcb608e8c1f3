"""Several processes give what one gives: the same bytes, the same counts, the same errors."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.catalog import Offer, Provider
from luthier.core.config.schema import Choice, RunConfig
from luthier.core.data import workers
from luthier.core.data.cache import data_folder
from luthier.core.errors import DataError

Write = Callable[..., Path]
Config = Callable[..., RunConfig]
Chat = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("few_rows_each")


@pytest.fixture
def rows(chat: Chat) -> list[dict[str, Any]]:
    """Of each kind that is counted: copies, long ones, several turns."""
    made = [chat(f"question {number % 700}", "answer " * (1 + number % 13), "more", "yes") for number in range(900)]
    return [row | {"id": number} for number, row in enumerate(made)]


def stored() -> dict[str, str]:
    """Every file of the only entry, by its content; meta.json says nothing that depends on how it was made."""
    (entry,) = data_folder().iterdir()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in entry.iterdir()}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many processes each start brings the pool to."""
    counts: list[int] = []
    start = workers._start

    def counted() -> Any:
        counts.append(len(counts) + 1)
        return start()

    monkeypatch.setattr(workers, "_start", counted)
    return counts


def test_the_same_bytes_whatever_the_number(
    run: Any, rows: list[Any], jsonl: Write, config: Config, started: list[int]
) -> None:
    path = jsonl(rows)
    found = []
    for count in (1, 2, 3):
        prepared = run(config(path, workers=count, eval=0.1, max_length=80))
        found.append((stored(), replace(prepared.report, sources=()), prepared.train.digest, prepared.eval.digest))
        shutil.rmtree(data_folder())
    assert found[0] == found[1] == found[2]
    assert sorted(found[0][0]) == [
        "beside.npy",
        "beside_ends.npy",
        "ends.npy",
        "ids.npy",
        "keys.npy",
        "learned.npy",
        "meta.json",
        "trained.npy",
        "values.npy",
    ]
    assert started == [1, 2, 3, 4, 5]
    assert found[0][1].dropped["longer than 80 tokens"] > 0
    # Batches of 256: 900 rows are four.
    assert [done for _, done, total in run.progress] == [256, 512, 768, 900] * 3
    assert {total for _, _, total in run.progress} == {900}


def test_little_data_stays_in_one_process(
    run: Any, rows: list[Any], jsonl: Write, config: Config, started: list[int]
) -> None:
    run(config(jsonl(rows[:199]), workers=4))
    assert started == []


def test_a_tokenizer_in_python(run: Any, rows: list[Any], jsonl: Write, config: Config, started: list[int]) -> None:
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    slow.chat_template = run.tokenizer.chat_template.replace("<eos>", "</s>")
    assert not slow.is_fast
    digests = []
    for count in (1, 2):
        digests.append(run(config(jsonl(rows[:300]), workers=count), tokenizer=slow).train.digest)
        shutil.rmtree(data_folder())
    assert digests[0] == digests[1]
    assert (started, run.notices) == ([1, 2], [])


def test_a_tokenizer_that_stays_here(run: Any, rows: list[Any], jsonl: Write, config: Config, started: list[int]) -> None:
    run.tokenizer.hook = lambda: None
    run(config(jsonl(rows[:300]), workers=2))
    assert run.notices == ["the tokenizer cannot be handed to other processes, so this one tokenises alone"]
    assert started == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_error_names_file_row_and_column(run: Any, rows: list[Any], jsonl: Write, config: Config, count: int) -> None:
    rows[655]["messages"][1]["role"] = "bot"
    rows[830]["messages"] = "later"
    path = jsonl(rows)
    with pytest.raises(DataError, match="bot") as caught:
        run(config(path, workers=count))
    assert caught.value.where == f"{path}:656, column messages[1].role"
    assert not list(data_folder().iterdir())


@pytest.mark.parametrize("count", [1, 2])
def test_a_line_that_is_no_json_does_not_hide_a_bad_row_before_it(
    run: Any, rows: list[Any], jsonl: Write, config: Config, count: int
) -> None:
    rows[10]["messages"][0]["content"] = 7
    path = jsonl(rows)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:700], "{", *lines[701:]]))
    with pytest.raises(DataError, match="must be a string") as caught:
        run(config(path, workers=count))
    assert caught.value.where.startswith(f"{path}:11, column ")


@pytest.mark.parametrize("count", [1, 2])
def test_bad_rows_are_counted_by_reason(
    run: Any, rows: list[Any], jsonl: Write, config: Config, account: Any, count: int
) -> None:
    for number in (3, 400, 880):
        rows[number]["messages"][1]["role"] = "bot"
    rows[500]["messages"][3]["content"] = 7
    prepared = run(config(jsonl(rows), workers=count, bad_rows="drop"))
    account(prepared)
    assert sorted(prepared.report.dropped.values()) == [1, 3]
    assert prepared.report.kept == 896
    assert not any("rows.jsonl" in reason or "400" in reason for reason in prepared.report.dropped)


def test_a_convert_without_a_name_is_called_here(
    run: Any, rows: list[Any], jsonl: Write, config: Config, started: list[int]
) -> None:
    method = run.formats["messages"].value
    run.formats["own"] = Offer(
        value=replace(
            method, name="own", convert=lambda row, options: method.convert(row, options), detect=lambda row: False
        ),
        provider=Provider(plugin="own"),
    )
    path = jsonl(rows)
    source = {"format": Choice(use="own")}
    theirs = run(config(path, workers=2, source=source))
    assert started == [1, 2]
    assert run.notices == ["rows of the format own are converted by one process: its `convert` has no name"]
    assert theirs.train.digest == run(config(path, workers=1)).train.digest
    rows[700]["messages"][1]["role"] = "bot"
    path = jsonl(rows, "bad.jsonl")
    with pytest.raises(DataError, match="bot") as caught:
        run(config(path, workers=2, source=source))
    assert f"{path}:701" in caught.value.where


def test_rows_in_the_configuration_go_to_no_worker(run: Any, chat: Chat, config: Config) -> None:
    """They are rows like others, and not a part of the options that every worker gets."""
    from luthier.core.config.schema import SourceConfig
    from luthier.core.data.making import Maker
    from luthier.core.data.workers import WorkerPool, packed
    from luthier.core.frozen import freeze

    inline = SourceConfig(inline=freeze([chat("SECRET", "a")]))
    data = replace(config("x").data, train=(inline,))
    with WorkerPool() as pool:
        maker = Maker(run.tokenizer, data, "conversation", pool, print, print)
    setup = packed(maker._encoding)
    assert setup is not None
    assert b"SECRET" not in setup
