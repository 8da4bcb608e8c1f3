"""What is tokenised anew and what is found in the cache: every input that decides tokens makes a new entry, no other one."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.catalog import Offer, Provider
from luthier.core.config.schema import Choice, RunConfig, SourceConfig
from luthier.core.data import making
from luthier.core.data.cache import clean, data_folder
from luthier.core.data.making import code_of
from luthier.core.errors import DataError, OutputError
from luthier.core.frozen import FrozenDict
from luthier.plugins import sharegpt as plugin

Write = Callable[..., Path]
Config = Callable[..., RunConfig]
Chat = Callable[..., dict[str, Any]]


def entries() -> set[str]:
    return {path.name for path in data_folder().iterdir()} if data_folder().exists() else set()


def cached(prepared: Any) -> list[bool]:
    return [source.cached for source in prepared.report.sources]


@pytest.fixture
def path(jsonl: Write, chat: Chat) -> Path:
    return jsonl([chat(f"question {number}", "answer " * (1 + number % 9)) | {"id": number} for number in range(40)][1:])


def test_the_second_time_nothing_is_read_or_tokenised(
    run: Any, path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(config(path, eval=0.2))
    steps = len(run.progress)
    assert steps == 1
    assert run.progress == [(first.report.sources[0].name, 39, 39)]
    again = run(config(path, eval=0.2))
    assert (cached(first), cached(again), len(run.progress)) == ([False], [True], steps)
    assert again.train.digest == first.train.digest
    assert replace(again.report, sources=()) == replace(first.report, sources=())
    assert len(entries()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 60},
        {"max_length": 60, "too_long": "truncate_right"},
        {"max_length": 60, "too_long": "truncate_left"},
        {"train_on": "last"},
        {"train_on": "all"},
        {"system": "Be brief."},
        {"bad_rows": "drop"},
        {"template_options": FrozenDict({"mood": "fine"})},
    ],
    ids=str,
)
def test_an_option_that_decides_tokens(run: Any, path: Path, config: Config, change: dict[str, Any]) -> None:
    run.tokenizer.chat_template += "{% if mood %}{% endif %}"
    plain = {"max_length": 60} if len(change) > 1 else {}
    run(config(path, **plain))
    assert cached(run(config(path, **change))) == [False]
    assert len(entries()) == 2
    assert cached(run(config(path, **plain))) == [True]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"eval": 3},
        {"workers": 1},
        {"mix": "interleave"},
        {"window": 7},
        {"source": {"sample": 0.5, "weight": 2.0}},
    ],
    ids=str,
)
def test_what_is_applied_to_row_numbers_makes_no_new_entry(
    run: Any, path: Path, config: Config, change: dict[str, Any]
) -> None:
    run(config(path))
    assert cached(run(config(path, **change))) == [True]


def test_the_content_of_the_file_and_not_its_name(run: Any, path: Path, config: Config) -> None:
    first = run(config(path))
    moved = path.rename(path.with_name("moved.jsonl"))
    again = run(config(moved))
    assert (cached(again), again.train.digest) == ([True], first.train.digest)
    text = moved.read_bytes()
    moved.write_bytes(text.replace(b"question 7", b"question 8"))
    then = moved.stat().st_mtime - 1000
    os.utime(moved, (then, then))
    assert cached(run(config(moved))) == [False]
    moved.write_bytes(text)
    assert cached(run(config(moved))) == [True]


def test_how_a_source_is_read(run: Any, path: Path, config: Config) -> None:
    run(config(path))
    for source in ({"rows": 20}, {"columns": FrozenDict({"messages": "messages"})}):
        assert cached(run(config(path, source=source))) == [False], source
    # Naming what was detected changes nothing.
    assert cached(run(config(path, source={"format": Choice(use="messages")}))) == [True]


def test_the_options_of_a_format(run: Any, jsonl: Write, config: Config) -> None:
    (sharegpt,) = [item for item in plugin.luthier_data_formats() if item.name == "sharegpt"]
    run.formats["sharegpt"] = Offer(value=sharegpt, provider=Provider(plugin="sharegpt"))
    rows = [{"conversations": [{"from": "human", "value": f"q {n}"}, {"from": "gpt", "value": "a"}]} for n in range(9)]
    path = jsonl(rows)
    choice = Choice(use="sharegpt")
    run(config(path, source={"format": choice}))
    for options in ({"user_tag": "human"}, {"system_tag": "setting"}):
        changed = Choice(use="sharegpt", options=FrozenDict(options))
        same = options == {"user_tag": "human"}  # written out, a default is no other option
        assert cached(run(config(path, source={"format": changed}))) == [same]


def test_the_tokenizer_and_its_template(run: Any, path: Path, config: Config) -> None:
    first = run(config(path))
    run.tokenizer.add_tokens(["question"])
    other = run(config(path))
    assert cached(other) == [False]
    assert other.report.tokens < first.report.tokens
    run.tokenizer.chat_template += "{# another text #}"
    assert cached(run(config(path))) == [False]
    assert len(entries()) == 3


def test_a_source_more_leaves_the_others_as_they_are(run: Any, path: Path, jsonl: Write, config: Config, chat: Chat) -> None:
    whole = config(path)
    run(whole)
    other = SourceConfig(path=str(jsonl([chat("new", "row")], "other.jsonl")))
    more = replace(whole, data=replace(whole.data, train=(other, *whole.data.train)))
    assert cached(run(more)) == [False, True]
    assert cached(run(more)) == [True, True]


def test_the_code_of_a_format(run: Any, path: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that somebody is writing: the same name, the same version, another file."""
    import sys

    source = tmp_path / "own_format.py"
    source.write_text("def convert(row):\n    return {'messages': row['messages']}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_format  # type: ignore[import-not-found]

    try:
        before = code_of(own_format.convert)
        source.write_text("def convert(row):\n    return {'messages': row['messages'][:2]}\n")
        assert code_of(own_format.convert) != before
    finally:
        del sys.modules["own_format"]
    assert code_of(len) == ""


def test_what_the_code_of_a_format_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin of several files: the one that changes is not the one that `convert` stands in."""
    import sys
    from functools import partial

    package = tmp_path / "own_package"
    (package / "formats").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "formats" / "__init__.py").write_text(
        "from own_package.turns import last\ndef convert(row): return last(row)\n"
    )
    (package / "turns.py").write_text("def last(row): return row\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from own_package import formats  # type: ignore[import-not-found]

    try:
        before = code_of(formats.convert)
        assert code_of(partial(formats.convert, 1)) == before != ""
        (package / "turns.py").write_text("def last(row): return row[-1:]\n")
        assert code_of(formats.convert) != before
    finally:
        for name in ("own_package", "own_package.formats", "own_package.turns"):
            del sys.modules[name]
    # One of ours does not count with the others.
    ours = Path(plugin.__file__).parent
    assert making._files_of(plugin) == sorted(ours.rglob("*.py"))


def test_another_release_of_a_library(run: Any, path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(path))
    monkeypatch.setattr(making, "version", lambda name: "2.0" if name == "tokenizers" else "1.0")
    assert cached(run(config(path))) == [False]


def test_a_file_that_changes_while_it_is_tokenised(
    run: Any, path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check the new content would lie under the key of the old one."""
    text, write_store = path.read_bytes(), making.write_store

    def changed(*arguments: Any) -> Any:
        path.write_bytes(text.replace(b"question 7", b"question 8"))
        return write_store(*arguments)

    monkeypatch.setattr(making, "write_store", changed)
    with pytest.raises(DataError, match="was changed while it was tokenised"):
        run(config(path))
    assert entries() == set()


def test_the_code_of_the_data_worker(run: Any, path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(path))
    monkeypatch.setattr(making, "own_code", lambda: "another release")
    assert cached(run(config(path))) == [False]


def test_a_bad_row_leaves_no_entry(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 7}]}
    with pytest.raises(DataError, match="must be a string"):
        run(config(jsonl([*(chat(str(number), "a") for number in range(30)), bad])))
    assert entries() == set()


def test_a_full_disk_while_tokenising(run: Any, path: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from luthier.core.data import store

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store._Files, "append", full)
    with pytest.raises(OutputError, match="the disk is full"):
        run(config(path))
    assert entries() == set()


def test_clean_leaves_what_a_run_holds(run: Any, path: Path, config: Config) -> None:
    prepared = run(config(path))
    assert (clean().removed, len(clean().in_use)) == (0, 1)
    assert len(prepared.train[0]["input_ids"]) > 0
    del prepared
    gc.collect()
    assert clean().removed == 1
