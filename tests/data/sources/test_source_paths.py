"""What a path means: a file, a folder, a glob, here or beside the configuration; and which paths are not allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.core.data.sources import place


def test_a_folder_is_all_its_data_files_in_order(written, opened, tmp_path: Path) -> None:
    for name in (
        "b.jsonl",
        "a10.jsonl",
        "sub/c.jsonl.gz",
        ".hidden.jsonl",
        ".git/x.jsonl",
        "README.md",
        "dataset_info.json",
    ):
        content = f'{{"file": "{name}"}}\n{{"file": "{name}"}}'.encode()
        if name.endswith(".gz"):
            import gzip

            content = gzip.compress(content)
        written(f"data/{name}", content)
    source = opened(tmp_path / "data")
    read = list(source.rows())
    expected = ["a10.jsonl", "b.jsonl", "sub/c.jsonl.gz"]
    assert [row.value["file"] for row in read] == [name for name in expected for _ in range(2)]
    assert [row.where for row in read] == [f"{tmp_path / 'data' / name}:{line}" for name in expected for line in (1, 2)]
    assert source.name == f"{tmp_path / 'data'} (3 files, 2 others left out)"
    assert (source.count(), opened(tmp_path / "data", rows=3).count()) == (6, 3)
    for start in range(8):
        assert [row.where for row in source.rows(start)] == [row.where for row in read[start:]]


def test_a_folder_of_several_types_names_them(written, fault, values, tmp_path: Path) -> None:
    written("data/a.json", '[{"a": "1"}]')
    written("data/b.csv", "a\n2\n")
    error = fault(tmp_path / "data")
    assert error.message == "holds files of several types: csv (b.csv), json (a.json)"
    assert "*.csv" in error.fix
    assert values(tmp_path / "data", type="csv") == [{"a": "2"}]
    assert values(tmp_path / "data" / "*.json") == [{"a": "1"}]


def test_a_type_that_no_name_tells(written, values, tmp_path: Path) -> None:
    written("data/part-0", '{"a": 1}')
    written("data/part-1", '{"a": 2}')
    assert values(tmp_path / "data", type="jsonl") == [{"a": 1}, {"a": 2}]


def test_a_folder_without_data_files(written, fault, tmp_path: Path) -> None:
    written("data/notes.md", "x")
    error = fault(tmp_path / "data")
    assert error.message == "holds no data file: notes.md"
    assert error.where == str(tmp_path / "data")
    (tmp_path / "none").mkdir()
    assert fault(tmp_path / "none").message == "holds no data file: it is empty"
    written("data/a.csv", "a\n1\n")
    assert fault(tmp_path / "data", type="parquet").message == "holds no parquet file: a.csv, notes.md"


def test_one_empty_file_of_several_is_named(written, fault, tmp_path: Path) -> None:
    written("data/a.jsonl", '{"a": 1}')
    empty = written("data/b.jsonl", "")
    assert fault(tmp_path / "data").where == str(empty)


def test_globs(written, values, opened, fault, tmp_path: Path) -> None:
    for name in ("x/1.jsonl", "x/y/2.jsonl", "x/y/3.txt", "z[1].jsonl"):
        written(name, f'{{"n": "{name}"}}')
    assert values(tmp_path / "x" / "*.jsonl") == [{"n": "x/1.jsonl"}]
    assert values(tmp_path / "**" / "*.jsonl") == [{"n": "x/1.jsonl"}, {"n": "x/y/2.jsonl"}, {"n": "z[1].jsonl"}]
    assert values(tmp_path / "x" / "?.jsonl") == [{"n": "x/1.jsonl"}]
    assert values(tmp_path / "z[1].jsonl") == [{"n": "z[1].jsonl"}]  # a file of that very name is no pattern
    assert opened(tmp_path / "x" / "*.jsonl").name.endswith("*.jsonl (1 file)")
    error = fault(tmp_path / "x" / "*.parquet")
    assert (error.message, error.where) == ("matches no file", str(tmp_path / "x" / "*.parquet"))


def test_a_relative_path_means_the_current_folder_then_the_configuration_s(
    written, opened, fault, tmp_path, monkeypatch
) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    for name in ("here/both.jsonl", "beside/both.jsonl", "beside/one.jsonl", "beside/data/a.jsonl"):
        written(name, f'{{"at": "{name}"}}')
    monkeypatch.chdir(here)

    def first(path: str, base: Path | None = beside) -> str:
        return next(opened(path, base=base).rows()).value["at"]

    assert first("both.jsonl") == "here/both.jsonl"
    assert first("one.jsonl") == "beside/one.jsonl"
    assert first("data") == "beside/data/a.jsonl"
    assert first("o*.jsonl") == "beside/one.jsonl"
    assert first(str(beside / "both.jsonl"), here) == "beside/both.jsonl"
    assert first((beside / "one.jsonl").as_uri()) == "beside/one.jsonl"
    error = fault("on.jsonl", base=beside)
    assert error.where == "on.jsonl"
    assert error.fix.startswith("did you mean ")
    assert "was looked for in" in fault("zzzzzzzz.jsonl", base=beside).fix


def test_placing(written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = tmp_path / "beside"
    written("beside/data/a.jsonl", "{}")
    monkeypatch.chdir(tmp_path)
    assert place("data", beside) == str(beside / "data")
    assert place("data/*.jsonl", beside) == str(beside / "data" / "*.jsonl")
    assert place("beside/data/a.jsonl", beside) == str(beside / "data" / "a.jsonl")
    assert place("nowhere.jsonl", beside) == "nowhere.jsonl"
    assert place("nowhere/*.jsonl", beside) == "nowhere/*.jsonl"
    assert place("s3://bucket/a.jsonl", beside) == "s3://bucket/a.jsonl"
    assert place("hf://datasets/a/b/*.jsonl", beside) == "hf://datasets/a/b/*.jsonl"


@pytest.fixture
def limited(tmp_path: Path, written, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `allowed` beside a file `secret.jsonl`; only the folder may be read."""
    written("secret.jsonl", '{"a": "secret"}')
    written("allowed/a.jsonl", '{"a": 1}')
    monkeypatch.setenv("LUTHIER_DATA_FOLDERS", os.pathsep.join((str(tmp_path / "other"), str(tmp_path / "allowed"))))
    return tmp_path / "allowed"


def test_files_in_the_allowed_folders_are_read(limited: Path, values, opened) -> None:
    assert values(limited / "a.jsonl") == values(limited) == values(limited / "*.jsonl") == [{"a": 1}]
    assert values(inline=({"a": 2},)) == [{"a": 2}]


def test_paths_that_lead_out_are_refused(limited: Path, fault, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = limited.parent / "secret.jsonl"
    (limited / "link.jsonl").symlink_to(secret)
    (limited / "folder").symlink_to(limited.parent, target_is_directory=True)
    monkeypatch.chdir(limited)
    for path in (
        secret,
        limited / ".." / "secret.jsonl",
        limited / "link.jsonl",
        limited / "folder" / "secret.jsonl",
        "../secret.jsonl",
        limited.parent,
        limited / "link*",
        limited,  # which holds the link
        secret.as_uri(),
    ):
        error = fault(path)
        assert "is outside the folders that LUTHIER_DATA_FOLDERS allows" in error.message
        assert str(limited) in error.fix


def test_names_outside_are_not_told(limited: Path, fault) -> None:
    for path in (limited.parent / "secre.jsonl", limited.parent / "nothing*", limited / ".." / "secret.json"):
        error = fault(path)
        assert "is outside the folders that LUTHIER_DATA_FOLDERS allows" in error.message
        assert "secret.jsonl" not in str(error)
    (limited / "folder").symlink_to(limited.parent, target_is_directory=True)
    near = fault(limited / "b.jsonl")
    assert near.fix == f"did you mean {limited / 'a.jsonl'}?"


def test_what_is_not_local_is_refused(limited: Path, fault) -> None:
    for keys in ({"path": "https://example.org/a.jsonl"}, {"path": "hf://datasets/a/b/c.jsonl"}, {"hub": "owner/name"}):
        assert "LUTHIER_DATA_FOLDERS allows only local files" in fault(**keys).message
