"""Writes are whole or absent: killed runs, full disks, torn lines, pruning."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from luthier.core import atomic
from luthier.core.errors import OutputError
from luthier.core.output import OutputFolder

FULL_DEVICE = Path("/dev/full")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[OutputFolder]:
    with OutputFolder.claim(tmp_path / "run") as claimed:
        yield claimed


def save_checkpoint(folder: OutputFolder, step: int, content: str = "{}") -> None:
    with folder.atomic_folder(f"checkpoint-{step}") as temporary:
        (temporary / "trainer_state.json").write_text(content)


def hidden(folder: OutputFolder) -> list[str]:
    return [e.name for e in folder.path.iterdir() if atomic.TEMPORARY in e.name or atomic.ASIDE in e.name]


def test_json_replaces_and_leaves_no_temporary(folder: OutputFolder) -> None:
    folder.write_json("all_results.json", {"loss": 1.5, "name": "größer"})
    folder.write_json("all_results.json", {"loss": 0.5})
    assert json.loads((folder.path / "all_results.json").read_text()) == {"loss": 0.5}
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.write_json("all_results.json", {"loss": float("nan")})
    assert json.loads((folder.path / "all_results.json").read_text()) == {"loss": 0.5}
    assert hidden(folder) == []


def test_a_folder_appears_whole_or_not_at_all(folder: OutputFolder) -> None:
    save_checkpoint(folder, 5, "old")
    with pytest.raises(KeyboardInterrupt), folder.atomic_folder("checkpoint-5") as temporary:
        (temporary / "trainer_state.json").write_text("half")
        raise KeyboardInterrupt
    assert (folder.path / "checkpoint-5" / "trainer_state.json").read_text() == "old"
    assert hidden(folder) == []
    save_checkpoint(folder, 5, "new")
    assert (folder.path / "checkpoint-5" / "trainer_state.json").read_text() == "new"
    assert hidden(folder) == []


def test_everything_is_flushed_before_the_rename(folder: OutputFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (order.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd))
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append("rename"), rename(a, b)))
    save_checkpoint(folder, 1)
    assert "trainer_state.json" in order[: order.index("rename")]
    assert "run" in order[order.index("rename") :]


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_previous_checkpoint(folder: OutputFolder) -> None:
    """/dev/full answers every write with the kernel's own ENOSPC."""
    save_checkpoint(folder, 5)
    message = r"disk is full while saving checkpoint-10.*checkpoint-5 is intact"
    with pytest.raises(OutputError, match=message) as caught, folder.atomic_folder("checkpoint-10") as temporary:
        (temporary / "trainer_state.json").symlink_to(FULL_DEVICE)
        (temporary / "trainer_state.json").write_text("x" * 10)
    assert "--resume" in caught.value.fix
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-5"]
    assert hidden(folder) == []


def test_a_full_disk_as_safetensors_reports_it(folder: OutputFolder) -> None:
    """It raises an error of its own, whose text alone says what happened: this one was seen on a full tmpfs."""
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(OutputError, match="disk is full"), folder.atomic_folder("checkpoint-1"):
        raise error


def test_other_errors_pass(folder: OutputFolder) -> None:
    with pytest.raises(PermissionError), folder.atomic_folder("checkpoint-1"):
        raise PermissionError("no")


def test_what_a_killed_run_left_is_repaired(tmp_path: Path) -> None:
    with OutputFolder.claim(tmp_path) as folder:
        save_checkpoint(folder, 5)
        save_checkpoint(folder, 6)
    os.rename(tmp_path / "checkpoint-6", tmp_path / ".checkpoint-6.old-99")  # died between its two renames
    (tmp_path / ".checkpoint-7.tmp-99").mkdir()
    (tmp_path / ".checkpoint-7.tmp-99" / "trainer_state.json").write_text("{}")
    with OutputFolder.claim(tmp_path, resume=True) as folder:
        assert [path.name for path in folder.checkpoints()] == ["checkpoint-5", "checkpoint-6"]
        assert hidden(folder) == []
        assert any("checkpoint-6 back" in notice for notice in folder.notices)


def test_checkpoints_sort_by_number_and_prune_oldest_first(folder: OutputFolder) -> None:
    for step in (9, 100, 20):
        save_checkpoint(folder, step)
    (folder.path / "checkpoint-300").mkdir()  # incomplete
    (folder.path / "checkpoint-best").mkdir()
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    folder.prune(2)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-20", "checkpoint-100"]
    folder.prune(0)
    assert folder.latest_checkpoint == folder.path / "checkpoint-100"


def test_metrics_rewind_to_the_resumed_step_and_drop_a_torn_line(folder: OutputFolder) -> None:
    for step in range(1, 8):
        folder.append_metrics({"event": "step", "step": step, "loss": 1 / step})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')
    assert folder.rewind_metrics(5) == 2
    folder.append_metrics({"event": "step", "step": 6, "loss": 0.0})
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[4]["loss"] == 1 / 5


def test_publish_moves_files_and_folders_together(folder: OutputFolder) -> None:
    folder.write_text("README.md", "old")
    with pytest.raises(RuntimeError, match="broke"), folder.publish() as temporary:
        (temporary / "README.md").write_text("half")
        raise RuntimeError("broke")
    assert (folder.path / "README.md").read_text() == "old"
    with folder.publish() as temporary:
        (temporary / "README.md").write_text("new")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("a")
    assert (folder.path / "README.md").read_text() == "new"
    assert (folder.path / "sub" / "a").read_text() == "a"
    assert hidden(folder) == []
