"""`load_config`: paths become absolute and entries are looked up, so that a run's config.yaml stands alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import luthier
from luthier.core.errors import DataError
from luthier.core.serial import to_plain


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration's data; the current folder is another one."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    folder = tmp_path / "project"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "a.jsonl").write_text("{}")
    (folder / "info").mkdir()
    (folder / "info" / "a.json").write_text("[{}]")
    entries = {"mine": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}, "num_samples": 3}}
    (folder / "info" / "dataset_info.json").write_text(json.dumps(entries))
    return folder


def write(folder: Path, data: dict[str, object]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"model": "smollm2-135m", "data": data}))
    return path


def test_local_paths_become_absolute(folder: Path) -> None:
    train = [
        "rows/a.jsonl",
        "rows",
        "rows/*.jsonl",
        "s3://bucket/*.jsonl",
        "nowhere.jsonl",
        {"hub": "rows/a"},
        {"inline": [{"a": 1}]},
    ]
    config = luthier.load_config(write(folder, {"train": train, "eval": ["rows/a.jsonl"]}))
    rows = str(folder / "rows")
    assert [source.path for source in config.data.train] == [
        f"{rows}/a.jsonl",
        rows,
        f"{rows}/*.jsonl",
        "s3://bucket/*.jsonl",
        "nowhere.jsonl",
        None,
        None,
    ]
    assert isinstance(config.data.eval, tuple)
    assert config.data.eval[0].path == f"{rows}/a.jsonl"


def test_the_current_folder_comes_first(folder: Path) -> None:
    (folder.parent / "current" / "rows").mkdir()
    config = luthier.load_config(write(folder, {"train": ["rows", "rows/a.jsonl"]}))
    assert [source.path for source in config.data.train] == [
        str(folder.parent / "current" / "rows"),
        str(folder / "rows" / "a.jsonl"),
    ]


def test_entries_are_looked_up_and_the_result_stands_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = luthier.load_config(write(folder, {"train": [{"dataset": "mine", "rows": 2}], "dataset_info": "info"}))
    (source,) = config.data.train
    assert source.path == str(folder / "info" / "a.json")
    assert (source.format.use, dict(source.columns)) == ("alpaca", {"instruction": "q", "output": "a"})
    assert (source.sample, source.rows, source.dataset) == (3, 2, None)
    assert config.data.dataset_info == str(folder / "info")
    monkeypatch.chdir("/")
    assert luthier.load_config(to_plain(config)) == config


def test_an_entry_that_is_missing(folder: Path) -> None:
    with pytest.raises(DataError, match="there is no entry 'mime'") as caught:
        luthier.load_config(write(folder, {"train": [{"dataset": "mime"}], "dataset_info": "info/dataset_info.json"}))
    assert caught.value.fix == "did you mean mine?"
