"""Writes that are either whole or absent: a temporary name in the same folder, fsync, then a rename.

A power cut, a full disk or Ctrl-C in the middle leaves what was there before. A folder cannot be renamed over a folder
that holds something, so the old one steps aside first; `recover` puts it back when a run died between the two renames.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp-"
ASIDE: Final = ".old-"
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
FULL_TEXTS: Final = ("no space left on device", "disk quota exceeded", "(os error 28)", "(os error 122)")


def is_disk_full(error: BaseException) -> bool:
    """Whether this error, or one that caused it, means that no room was left; safetensors reports it as text only."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if any(text in str(seen).lower() for text in FULL_TEXTS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def temporary_name(path: Path) -> Path:
    """A hidden sibling of `path` that belongs to this process."""
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")


def sync(path: Path) -> None:
    """Flush one file, or the entries of one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below and including `folder`."""
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(root))


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`, UTF-8; raises OSError and then leaves the old file as it was."""
    temporary = temporary_name(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def replace_folder(temporary: Path, target: Path) -> None:
    """Put the finished folder `temporary` at `target`; an old one there is removed only when the new one is in place."""
    sync_tree(temporary)
    aside = target.with_name(f".{target.name}{ASIDE}{os.getpid()}")
    replaced = target.exists()
    if replaced:
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        if replaced:
            os.rename(aside, target)
        raise
    sync(target.parent)
    if replaced:
        shutil.rmtree(aside)


def leftovers(folder: Path) -> Iterator[tuple[Path, Path, bool]]:
    """(leftover, the name it was meant for, whether it is an old folder moved aside) for writes that never finished."""
    for path in sorted(folder.glob(".*")):
        for mark in (TEMPORARY, ASIDE):
            name, found, process = path.name[1:].rpartition(mark)
            if found and name and process.isdigit():
                yield path, folder / name, mark == ASIDE


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    temporary = temporary_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(folder: Path) -> list[str]:
    """Undo what a dead run left half done in `folder`; one sentence for each thing done. Call it with the lock held."""
    done = []
    for path, target, aside in list(leftovers(folder)):
        if aside and not target.exists():
            os.rename(path, target)
            done.append(f"put {target.name} back, which an earlier run died while replacing")
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            done.append(f"removed {path.name}, which an earlier run left unfinished")
    return done
