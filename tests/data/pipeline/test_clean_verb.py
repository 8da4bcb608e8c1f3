"""`luthier data clean` on the command line, and the bar that shows rows being tokenised."""

from __future__ import annotations

import gc
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.cli.progress import Progress
from luthier.core.data.cache import data_folder, entry
from luthier.core.data.store import Chunk, write_store
from luthier.core.extensions import RunEvent
from luthier.core.frozen import FrozenDict


def make(key: str, days: float = 0) -> int:
    """An entry last used so many days ago; its bytes."""

    def fill(folder: Path) -> dict[str, Any]:
        digest, files = write_store(folder, [Chunk.of([1, 2], b"\1\1", [2], [3], [None])])
        return {"digest": digest, "files": files, "per_row": 1}

    entry(key, fill, lambda text: None)
    gc.collect()
    then = time.time() - days * 86400
    os.utime(data_folder() / key / "meta.json", (then, then))
    return sum(path.stat().st_size for path in (data_folder() / key).iterdir())


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [make("a", days=9), make("b", days=2)]
    assert main(["data", "clean", "--older-than", "5", "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    folder = str(data_folder())
    expected = {"folder": folder, "removed": 1, "bytes": sizes[0], "kept": 1, "in_use": [], "dry_run": True}
    assert report == expected
    assert main(["data", "clean", "--older-than", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected | {"dry_run": False}
    assert [path.name for path in data_folder().iterdir()] == ["b"]


def test_folders_of_somebody_else_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LUTHIER_CACHE=. in a project that has a folder `data`."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    for name in ("mine/rows.jsonl", "mine/meta.json", "array/ids.npy", "array/other.npy", ".hidden/file", ".git/.making/x"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    (tmp_path / "data" / "empty").mkdir()
    make("a")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "data" / "a")
    assert main(["data", "clean"]) == 0
    left = {path.name for path in data_folder().iterdir()}
    assert left == {"mine", "array", ".hidden", ".git", "empty", "link"}
    assert (data_folder() / "mine" / "rows.jsonl").read_text() == "precious"


def test_a_person_reads_how_much_and_what_is_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    size = make("a")
    make("held")
    held = entry("held", lambda folder: pytest.fail("it is there"), lambda text: None)
    assert main(["data", "clean"]) == 0
    shown = capsys.readouterr()
    assert 1024 <= size < 1024**2
    assert shown.out == f"1 tokenised source removed ({size / 1024:.1f} KiB) from {data_folder()}; 0 kept\n"
    assert shown.err == "in use, and left alone: held\n"
    assert held.store.ids.tolist() == [1, 2]


@pytest.mark.parametrize("words", [["data", "clean", "--older-than", "-1"], ["data", "wash"]])
def test_a_command_line_that_means_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().out == ""


def rows(done: int, of: int | None, source: str = "rows.jsonl") -> RunEvent:
    return RunEvent(kind="phase", values=FrozenDict({"name": "data", "source": source, "rows": done, "of": of}))


def shown(events: list[RunEvent], *, terminal: bool) -> str:
    from rich.console import Console

    file = io.StringIO()
    with Progress(Console(file=file, force_terminal=terminal, width=100)) as progress:
        for event in events:
            progress(event)
    return file.getvalue()


def test_a_terminal_shows_rows_go_by() -> None:
    text = shown([rows(256, 1000), rows(512, 1000), rows(7, None, "[other].csv")], terminal=True)
    assert "512/1000" in text
    assert "rows of rows.jsonl" in text
    assert "rows of [other].csv" in text


def test_anywhere_else_they_are_not_mentioned() -> None:
    said = RunEvent(kind="phase", message="reading and tokenising the data", values=FrozenDict({"name": "data"}))
    assert shown([said, rows(256, 1000), rows(512, 1000)], terminal=False) == "reading and tokenising the data\n"
