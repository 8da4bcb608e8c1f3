"""Hub data sets through `datasets`, whose loader is pointed at folders here: no test asks the network."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, ExitCode, MissingEnvironmentError

datasets = pytest.importorskip("datasets")
ROWS = [{"question": f"{index}?", "turns": [{"role": "user", "n": index}]} for index in range(600)]
CARD = """---
configs:
- config_name: small
  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]
- config_name: large
  data_files: [{split: train, path: test.jsonl}]
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`hub("owner/name")` is a folder that stands for this data set; what the loader was asked is in `hub.asked`."""
    load = datasets.load_dataset_builder
    asked: list[dict[str, Any]] = []
    monkeypatch.chdir(tmp_path)

    def builder(path: str, **keys: Any) -> Any:
        asked.append({"path": path, **keys})
        folder = tmp_path / "hub" / path
        if not folder.is_dir():
            raise datasets.exceptions.DatasetNotFoundError(
                f"Dataset '{path}' doesn't exist on the Hub or cannot be accessed."
            )
        revision = keys.pop("revision", None)
        made = load(str(folder), cache_dir=str(tmp_path / "cache"), **keys)
        made.hash = f"{made.hash}-{revision}"
        return made

    def make(name: str) -> Path:
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        for file, rows in (("train", ROWS), ("test", ROWS[:2])):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    make.asked = asked  # type: ignore[attr-defined]
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    return make


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_split(hub, opened, streaming: bool) -> None:
    hub("owner/name")
    source = opened(hub="owner/name", streaming=streaming)
    read = list(source.rows())
    assert [row.value for row in read] == ROWS
    assert (read[0].where, read[-1].where) == ("owner/name (train), row 1", "owner/name (train), row 600")
    assert source.count() == (None if streaming else 600)
    for start in (0, 1, 256, 599, 600, 700):
        part = list(source.rows(start))
        assert [row.value for row in part] == ROWS[start:]
        assert [row.line for row in part] == list(range(start + 1, 601))
    first = opened(hub="owner/name", rows=3, streaming=streaming)
    assert [row.value for row in first.rows(1)] == ROWS[1:3]
    assert first.count() == (None if streaming else 3)
    assert opened(hub="owner/name", split="test", streaming=streaming).name == "owner/name (test)"
    assert len(list(opened(hub="owner/name", split="test", streaming=streaming).rows())) == 2


def test_what_the_loader_is_asked(hub, opened) -> None:
    (hub("owner/name") / "README.md").write_text(CARD)
    next(opened(hub="owner/name", subset="small", revision="v2").rows())
    assert hub.asked == [{"path": "owner/name", "name": "small", "revision": "v2"}]


def test_a_part_of_a_split(hub, opened, fault) -> None:
    hub("owner/name")
    source = opened(hub="owner/name", split="train[:10%]")
    assert (source.count(), [row.value for row in source.rows()]) == (60, ROWS[:60])
    error = fault(hub="owner/name", split="train[:10%]", streaming=True)
    assert "data.streaming: false" in error.fix


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_split_or_subset_lists_what_there_is(hub, fault, streaming: bool) -> None:
    (hub("owner/name") / "README.md").write_text(CARD)
    error = fault(hub="owner/name", subset="small", split="validation", streaming=streaming)
    assert error.where == "owner/name/small (validation)"
    assert "'train'" in error.message
    assert "'test'" in error.message
    assert "`split`" in error.fix
    for subset in ("medium", None):
        error = fault(hub="owner/name", subset=subset, streaming=streaming)
        assert "'small'" in error.message
        assert "'large'" in error.message
        assert "`subset`" in error.fix


def test_a_data_set_that_is_not_there(hub, fault) -> None:
    error = fault(hub="owner/nothing")
    assert error.message.startswith("is not on the hub, or not open to you")
    assert error.where == "owner/nothing (train)"
    assert "hf auth login" in error.fix


def test_no_network(fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for streaming in (False, True):
        error = fault(hub="owner/never-downloaded", streaming=streaming)
        assert error.where == "owner/never-downloaded (train)"
        assert "without a network" in error.fix


def test_the_connection_breaks_while_streaming(hub, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    hub("owner/name")
    source = opened(hub="owner/name", streaming=True)

    def broken() -> Any:
        yield ROWS[0]
        raise ConnectionError("reset by peer")

    source.__dict__["_data"] = broken()
    rows = source.rows()
    assert next(rows).value == ROWS[0]
    with pytest.raises(
        DataError, match=r"owner/name \(train\): cannot be read \(ConnectionError\): reset by peer"
    ) as caught:
        next(rows)
    assert caught.value.exit_code == ExitCode.DATA


def test_fingerprints(hub, opened) -> None:
    (hub("owner/name") / "README.md").write_text(CARD)
    keys = {"hub": "owner/name", "subset": "small"}
    found = [
        opened(**keys).fingerprint(),
        opened(**keys, split="test").fingerprint(),
        opened(**keys, rows=2).fingerprint(),
        opened(**keys, revision="v2").fingerprint(),
        opened(hub="owner/name", subset="large").fingerprint(),
    ]
    assert len(set(found)) == len(found)
    assert opened(**keys, streaming=True).fingerprint() == found[0]


def test_names(tmp_path: Path, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("/etc", "../x", "a/b/c", "a b", "hf://datasets/a/b", ""):
        if name:
            with pytest.raises(DataError, match="is no name of a hub data set"):
                opened(hub=name)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(DataError, match="is also a path here"):
        opened(hub="owner/name")


def test_the_missing_package(opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    source = opened(hub="owner/name")
    with pytest.raises(MissingEnvironmentError, match="the package datasets is not installed") as caught:
        source.fingerprint()
    assert caught.value.fix == "pip install 'luthier[data]'"
