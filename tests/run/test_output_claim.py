"""Who may write into an output folder, and what --overwrite may remove."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core import lock, output
from luthier.core.errors import ExitCode, OutputError
from luthier.core.output import OutputFolder


def finished_run(path: Path) -> None:
    with OutputFolder.claim(path) as folder:
        folder.write_json("plan.json", {})
        with folder.atomic_folder("checkpoint-3") as temporary:
            (temporary / "trainer_state.json").write_text("{}")
        with folder.publish() as temporary:
            (temporary / "model.safetensors").write_text("weights")
            (temporary / "extra").mkdir()
            (temporary / "extra" / "file").write_text("x")


def test_new_and_empty_folders_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "deep/new"):
        with OutputFolder.claim(tmp_path / name) as folder:
            assert folder.path.is_dir()
        assert list(folder.path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"not empty[\s\S]*--resume[\s\S]*--overwrite") as caught:
        OutputFolder.claim(tmp_path)
    assert caught.value.exit_code == ExitCode.REFUSED
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("inside", [[], ["plan.json"], ["config.yaml", "notes.md"]])
def test_overwrite_refuses_what_luthier_did_not_make(tmp_path: Path, inside: list[str]) -> None:
    for name in ["precious", *inside]:
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="not made by Luthier"):
        OutputFolder.claim(tmp_path, overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"precious", *inside}


def test_overwrite_removes_its_own_files_once_the_run_has_started(tmp_path: Path) -> None:
    finished_run(tmp_path)
    (tmp_path / "notes.md").write_text("mine")
    with OutputFolder.claim(tmp_path, overwrite=True) as folder:
        assert (tmp_path / "checkpoint-3").is_dir()
        assert (tmp_path / "model.safetensors").exists()
        folder.remove_previous()
        assert {e.name for e in tmp_path.iterdir() if not e.name.startswith(".")} == {"notes.md"}
        assert "notes.md" in folder.notices[-1]
        folder.write_json("plan.json", {"new": True})
        folder.remove_previous()
    assert json.loads((tmp_path / "plan.json").read_text()) == {"new": True}


def test_a_list_that_was_tampered_with_cannot_reach_out_of_the_folder(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    finished_run(run)
    outside.write_text("mine")
    (run / output.MANIFEST).write_text(json.dumps({"files": ["../outside", str(outside), "..", "plan.json"]}))
    with OutputFolder.claim(run, overwrite=True) as folder:
        folder.remove_previous()
    assert outside.read_text() == "mine"
    assert not (run / "plan.json").exists()


def test_resume_needs_a_run_with_a_complete_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no run to resume"):
        OutputFolder.claim(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "run" / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(OutputError, match="no complete checkpoint"):
        OutputFolder.claim(tmp_path / "run", resume=True)
    (tmp_path / "run" / "checkpoint-7" / "trainer_state.json").write_text("{}")
    with OutputFolder.claim(tmp_path / "run", resume=True) as folder:
        assert folder.latest_checkpoint == tmp_path / "run" / "checkpoint-7"
    with pytest.raises(OutputError, match="both"):
        OutputFolder.claim(tmp_path / "run", resume=True, overwrite=True)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(OutputError, match="a file stands") as caught:
            OutputFolder.claim(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(("number", "message"), [(errno.EACCES, "cannot be written"), (errno.ENOSPC, "disk is full")])
def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str) -> None:
    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(OutputError, match=message) as caught:
        OutputFolder.claim(tmp_path / "run")
    assert caught.value.fix
    assert caught.value.exit_code == 2


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with OutputFolder.claim(tmp_path / "run"):
        with pytest.raises(OutputError, match=f"another run is writing here \\(process {os.getpid()}"):
            OutputFolder.claim(tmp_path / "run")
        code = (
            "import sys; from luthier.core.output import OutputFolder; from luthier.core.errors import OutputError\n"
            "try: OutputFolder.claim(sys.argv[1])\n"
            "except OutputError as error: print(error)"
        )
        told = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True
        )
        assert f"process {os.getpid()}" in told.stdout
    with OutputFolder.claim(tmp_path / "run") as again:
        assert again.notices == []


def test_the_lock_of_a_killed_run_is_taken_over_with_a_notice(tmp_path: Path) -> None:
    code = (
        "import os, sys; from luthier.core.output import OutputFolder\n"
        "OutputFolder.claim(sys.argv[1]); print(os.getpid(), flush=True); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (tmp_path / output.LOCK).exists()
    with OutputFolder.claim(tmp_path) as folder:
        assert folder.notices == [f"took over the lock of process {dead.stdout.strip()}, which has ended"]


def test_a_folder_of_somebody_else_is_refused_untouched(tmp_path: Path) -> None:
    """Names that look like our leftovers are removed or renamed only in a folder that a run of ours has marked."""
    folder = tmp_path / "theirs"
    (folder / ".notes.tmp-123").mkdir(parents=True)
    (folder / ".notes.tmp-123" / "a.txt").write_text("a")
    (folder / ".book.old-7").write_text("b")
    before = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputError):
            OutputFolder.claim(folder, **options)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == before
