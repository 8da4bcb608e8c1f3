"""The first look: formats named and detected, and the messages when neither works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.catalog import Offer, Provider
from luthier.core.config.schema import Choice, DataConfig, SourceConfig
from luthier.core.data import survey
from luthier.core.errors import DataError, ExitCode, PluginError
from luthier.core.extensions import DataFormat
from luthier.core.plan import SourceSummary

Formats = dict[str, Offer[DataFormat]]
Write = Callable[..., Path]
ALPACA = {"instruction": "Say hi.", "output": "Hi."}
EXAMPLES = Path(__file__).parents[3] / "examples" / "data"


def look(path: Path | str, formats: Formats, **source: Any) -> SourceSummary:
    return survey(DataConfig(train=(SourceConfig(path=str(path), **source),)), formats)[0]


def test_detected_and_counted(jsonl: Write, formats: Formats, chat: Callable[..., Any]) -> None:
    train, held = jsonl([ALPACA] * 30, "train.jsonl"), jsonl([chat("a", "b")], "eval.jsonl")
    data = DataConfig(train=(SourceConfig(path=str(train), rows=25),), eval=(SourceConfig(path=str(held)),))
    first, second = survey(data, formats)
    assert (first.path, first.format, first.kind, first.rows, first.role) == (
        str(train),
        "alpaca",
        "conversation",
        25,
        "train",
    )
    assert (second.format, second.rows, second.role) == ("messages", 1, "eval")
    assert "detected from the columns of the first 20 rows" in first.why
    assert "its only row" in second.why


def test_named(jsonl: Write, formats: Formats) -> None:
    summary = look(jsonl([ALPACA | {"messages": 1}]), formats, format=Choice(use="alpaca"))
    assert (summary.format, summary.why) == ("alpaca", "named in the configuration")


def test_relative_to_the_configuration(jsonl: Write, formats: Formats, tmp_path: Path) -> None:
    jsonl([ALPACA], "only-there.jsonl")
    data = DataConfig(train=(SourceConfig(path="only-there.jsonl"),))
    assert survey(data, formats, tmp_path)[0].path == str(tmp_path / "only-there.jsonl")
    with pytest.raises(DataError):
        survey(data, formats)


def test_unknown_format(jsonl: Write, formats: Formats) -> None:
    path = jsonl([ALPACA])
    with pytest.raises(DataError, match="did you mean 'alpaca'") as caught:
        look(path, formats, format=Choice(use="alpacca"))
    assert caught.value.where == str(path)
    with pytest.raises(DataError, match="the formats are: alpaca, messages"):
        look(path, formats, format=Choice(use="xyz"))


def test_nothing_detected_lists_columns_and_formats(jsonl: Write, formats: Formats) -> None:
    path = jsonl([{"prompt": "a", "answer": "b"}])
    with pytest.raises(DataError, match="columns prompt, answer") as caught:
        look(path, formats)
    assert caught.value.where == f"{path}:1"
    assert "alpaca (instruction, output" in caught.value.fix
    assert "messages (messages (or conversation)" in caught.value.fix


def test_rows_that_disagree(jsonl: Write, formats: Formats, chat: Callable[..., Any]) -> None:
    path = jsonl([ALPACA, ALPACA, chat("a", "b")])
    with pytest.raises(DataError, match="line 1 has the format alpaca, line 3 the format messages") as caught:
        look(path, formats)
    assert caught.value.where == f"{path}:3"


def test_a_row_without_its_column_is_that_fault_and_not_a_disagreement(jsonl: Write, formats: Formats) -> None:
    path = jsonl([ALPACA, {"instruction": "Say hi.", "input": ""}])
    with pytest.raises(DataError, match="is missing; the row has: instruction, input") as caught:
        look(path, formats)
    assert caught.value.where == f"{path}:2, column output"
    assert caught.value.exit_code == ExitCode.DATA


def test_priority_decides_and_a_tie_asks(jsonl: Write, formats: Formats) -> None:
    path = jsonl([ALPACA])
    twin = replace(formats["alpaca"].value, name="twin")
    both = formats | {"twin": Offer(value=twin, provider=Provider(plugin="twin"))}
    with pytest.raises(DataError, match="fits several formats: alpaca, twin") as caught:
        look(path, both)
    assert "format: alpaca" in caught.value.fix
    both["twin"] = Offer(value=replace(twin, priority=1), provider=Provider(plugin="twin"))
    assert look(path, both).format == "twin"


def test_a_fault_of_a_format_is_a_plugin_s_and_names_who_brings_it(jsonl: Write, formats: Formats) -> None:
    def broken(row: Any) -> Any:
        raise KeyError("oops")

    provider = Provider(plugin="other", distribution="other-dist", version="1.0")
    for field in ("detect", "convert"):
        bad = Offer(value=replace(formats["alpaca"].value, **{field: broken}), provider=provider)
        with pytest.raises(PluginError, match=f"`{field}` of the data format 'alpaca' failed: KeyError") as caught:
            look(jsonl([ALPACA]), {"alpaca": bad})
        assert "other-dist 1.0" in caught.value.fix


def test_the_examples_of_the_repository(formats: Formats) -> None:
    assert [look(EXAMPLES / f"{name}.jsonl", formats).format for name in ("alpaca", "messages")] == ["alpaca", "messages"]
