"""One run per output folder: a lock file with the process number in it, held through the kernel.

The kernel drops the lock of a process that dies, so a stale file is told from a living run without guessing.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from contextlib import suppress
from pathlib import Path

from luthier.core.errors import OutputError


class FolderLock:
    """Held from `acquire` to `release`, or to the end of the process."""

    def __init__(self, path: Path, descriptor: int, notice: str) -> None:
        self.path, self.notice = path, notice
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, path: Path) -> FolderLock:
        """Lock `path`; `notice` says when it was taken over from a dead run. Raises OutputError when a run holds it.

        OSError passes through: the folder cannot be written.
        """
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(os.read(descriptor, 4096))
                os.close(descriptor)
                process = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'this host')}"
                raise OutputError(
                    f"another run is writing here ({process})",
                    where=str(path.parent),
                    fix="wait for it to end, or choose another `output`",
                ) from None
            # The holder removes the file when it ends: a lock on a file that has gone protects nothing.
            if _same_file(descriptor, path):
                break
            os.close(descriptor)
        stale = _holder(os.read(descriptor, 4096))
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode())
        notice = f"took over the lock of process {stale['pid']}, which has ended" if "pid" in stale else ""
        return cls(path, descriptor, notice)

    def release(self) -> None:
        """Give the folder up; a second call does nothing."""
        if self._descriptor is None:
            return
        with suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None


def _holder(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
