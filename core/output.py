"""The folder that a run leaves behind: claimed by one run, written atomically, and never somebody else's files.

runs/my-first/
  config.yaml  plan.json  environment.json  metrics.jsonl  all_results.json  README.md  ...weights...
  checkpoint-N/       complete, or not there
  .luthier.json       the names that Luthier wrote: what --overwrite may remove
  .luthier.lock       while a run writes here
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TextIO

from luthier.core import atomic
from luthier.core.errors import OutputError
from luthier.core.lock import FolderLock

LOCK: Final = ".luthier.lock"
MANIFEST: Final = ".luthier.json"
METRICS: Final = "metrics.jsonl"
CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")
CHECKPOINT_STATE: Final = "trainer_state.json"
MARKS: Final = ("plan.json", "config.yaml")


def checkpoint_step(folder: Path) -> int:
    """The optimizer step of a checkpoint folder; raises ValueError when its name is none."""
    match = CHECKPOINT.fullmatch(folder.name)
    if not match:
        raise ValueError(f"{folder} is not named like a checkpoint")
    return int(match[1])


class OutputFolder:
    """Made by `claim`. `notices` are sentences for the user about what was found and repaired."""

    def __init__(self, path: Path, lock: FolderLock, *, resumed: bool, overwrite: bool) -> None:
        self.path, self.resumed = path, resumed
        self.notices: list[str] = [lock.notice] if lock.notice else []
        self._lock, self._overwrite = lock, overwrite
        self._names: set[str] = set(_manifest(path) or ())
        self._metrics: TextIO | None = None

    @classmethod
    def claim(cls, path: str | Path, *, resume: bool = False, overwrite: bool = False) -> OutputFolder:
        """Take the folder for this run, making it when it is missing.

        Nothing is removed here: with `overwrite`, `remove_previous()` does it once the new run has really started.
        Raises OutputError when it cannot be written, another run holds it, it holds something and neither `resume` nor
        `overwrite` was asked for, there is no checkpoint to resume, or what is to be overwritten was not made by Luthier.
        """
        folder = Path(path).expanduser()
        where = str(path)
        if resume and overwrite:
            raise OutputError("cannot both resume and overwrite", where=where, fix="give --resume or --overwrite")
        if resume and not folder.is_dir():
            raise OutputError("there is no run to resume", where=where, fix="start it without --resume")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock.acquire(folder / LOCK)
        except (FileExistsError, NotADirectoryError) as error:
            raise OutputError(
                f"a file stands where the output folder should be: {error.filename}",
                where=where,
                fix="choose another `output`, or move that file",
            ) from error
        except OSError as error:
            if atomic.is_disk_full(error):
                raise OutputError("the disk is full", where=where, fix="make room, or choose another `output`") from error
            raise OutputError(
                f"the output folder cannot be written: {error.strerror or error}",
                where=where,
                fix="choose an `output` that you may write to",
            ) from error
        try:
            output = cls(folder, lock, resumed=resume, overwrite=overwrite)
            output._admit(where)
        except BaseException:
            lock.release()
            raise
        return output

    def _admit(self, where: str) -> None:
        if _manifest(self.path) is not None:
            # Only in a folder of ours: elsewhere a name like a leftover's is somebody's file.
            self.notices += atomic.recover(self.path)
        present = {entry.name for entry in self.path.iterdir()} - {LOCK, MANIFEST}
        if self.resumed:
            if not self.checkpoints():
                raise OutputError(
                    "there is no complete checkpoint to resume", where=where, fix="start anew with --overwrite"
                )
        elif present and not self._overwrite:
            raise OutputError(
                "the output folder exists and is not empty",
                where=where,
                fix="continue that run with --resume, replace it with --overwrite, or choose another `output`",
            )
        elif present and (_manifest(self.path) is None or not any(mark in present for mark in MARKS)):
            raise OutputError(
                "the folder to overwrite was not made by Luthier (no .luthier.json beside a plan.json or config.yaml)",
                where=where,
                fix="choose another `output`, or empty the folder yourself",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Close the metrics file and give up the lock; a second call does nothing."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        self._lock.release()

    def remove_previous(self) -> None:
        """With `overwrite`: remove what the earlier run left, by its own list. Anything else stays, and is said."""
        if not self._overwrite:
            return
        self._overwrite = False
        for name in sorted(self._names):
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        self._names.clear()
        self._write_manifest()
        rest = sorted(entry.name for entry in self.path.iterdir() if entry.name not in (LOCK, MANIFEST))
        if rest:
            self.notices.append(f"left in place, because no earlier run wrote them: {', '.join(rest)}")

    # ---- single files

    def write_text(self, name: str, text: str) -> Path:
        """Write a file whole or not at all. Raises OutputError on a full disk."""
        with self._saving(name):
            self._record(name)
            atomic.write_text(self.path / name, text)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """As `write_text`; the value must be JSON-shaped, without NaN or infinities (ValueError)."""
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl; it is on its way to the disk when this returns."""
        with self._saving(METRICS):
            if self._metrics is None:
                self._record(METRICS)
                self._metrics = (self.path / METRICS).open("a", encoding="utf-8", buffering=1)
            self._metrics.write(json.dumps(dict(record), ensure_ascii=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The complete lines of metrics.jsonl; the one that a killed run was writing is left out."""
        path = self.path / METRICS
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def rewind_metrics(self, step: int) -> int:
        """Drop the lines after optimizer step `step`, from which the run goes on; returns how many were dropped."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        path = self.path / METRICS
        if not path.exists():
            return 0
        whole = self.metrics()
        kept = [record for record in whole if record.get("step", 0) <= step]
        self.write_text(METRICS, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
        return len(whole) - len(kept)

    # ---- folders

    @contextmanager
    def atomic_folder(self, name: str) -> Iterator[Path]:
        """A temporary folder that becomes `name` when the block ends well, and vanishes when it does not.

        An older folder of that name is replaced only by a complete one. Raises OutputError on a full disk.
        """
        with self._temporary(name) as temporary:
            yield temporary
            self._record(name)
            atomic.replace_folder(temporary, self.path / name)

    @contextmanager
    def publish(self, what: str = "the results") -> Iterator[Path]:
        """A temporary folder whose entries are moved into the output folder, one rename each, when the block ends well."""
        with self._temporary("results", what) as temporary:
            yield temporary
            atomic.sync_tree(temporary)
            entries = sorted(temporary.iterdir())
            self._record(*(entry.name for entry in entries))
            for entry in entries:
                if entry.is_dir():
                    atomic.replace_folder(entry, self.path / entry.name)
                else:
                    os.replace(entry, self.path / entry.name)
            atomic.sync(self.path)
            temporary.rmdir()

    @contextmanager
    def _temporary(self, name: str, what: str = "") -> Iterator[Path]:
        temporary = atomic.temporary_name(self.path / name)
        with self._saving(what or name):
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                yield temporary
            finally:
                # In place of a failed save; after a good one there is nothing under this name.
                shutil.rmtree(temporary, ignore_errors=True)

    # ---- checkpoints

    def checkpoints(self) -> list[Path]:
        """Complete checkpoint folders, oldest step first."""
        found = [
            entry
            for entry in self.path.glob("checkpoint-*")
            if CHECKPOINT.fullmatch(entry.name) and (entry / CHECKPOINT_STATE).is_file()
        ]
        return sorted(found, key=checkpoint_step)

    @property
    def latest_checkpoint(self) -> Path | None:
        """The complete checkpoint of the highest step."""
        found = self.checkpoints()
        return found[-1] if found else None

    def prune(self, keep: int, *, spare: str | None = None) -> list[Path]:
        """Remove all but the `keep` newest checkpoints (one stays) and the one called `spare`; returns what is gone."""
        old = [folder for folder in self.checkpoints()[: -max(keep, 1)] if folder.name != spare]
        for folder in old:
            # Renamed first: a removal that is cut short must not look like a checkpoint.
            doomed = atomic.temporary_name(folder)
            os.rename(folder, doomed)
            shutil.rmtree(doomed)
            self._names.discard(folder.name)
        if old:
            self._write_manifest()
        return old

    # ---- what was written

    def _record(self, *names: str) -> None:
        new = {Path(name).parts[0] for name in names} - self._names
        if new:
            self._names |= new
            self._write_manifest()

    def _write_manifest(self) -> None:
        atomic.write_text(self.path / MANIFEST, json.dumps({"version": 1, "files": sorted(self._names)}) + "\n")

    @contextmanager
    def _saving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, OutputError) or not atomic.is_disk_full(error):
                raise
            last = self.latest_checkpoint
            kept = f"; the previous checkpoint {last} is intact" if last else "; there is no earlier checkpoint"
            raise OutputError(
                f"the disk is full while saving {what}{kept}",
                where=str(self.path),
                fix="make room and continue with --resume" if last else "make room, or choose another `output`",
            ) from error


def _manifest(folder: Path) -> list[str] | None:
    """The names an earlier run recorded, or None where there is no list that can be read."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A name is one entry of this folder: a list that was tampered with cannot reach out of it.
    return [name for name in files if isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")]
