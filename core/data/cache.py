"""Tokenised sources on disk: made once, found again by a key over everything that decides their content.

    LUTHIER_CACHE/data/
      3f9c.../          an entry: the store's arrays, and meta.json with their sizes
      .3f9c.../         while it is being made
      3f9c....lock      held by whoever makes it; another process that needs the same entry waits

An entry appears by a rename, so it is whole or not there. Whoever uses one holds a shared lock on its meta.json: `clean`
leaves it. The time of last use is that of meta.json.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from luthier.core.atomic import is_disk_full
from luthier.core.caching import CACHE_VARIABLE, MAKING, cache_folder, publish_folder, workshop
from luthier.core.data.store import DTYPES, TokenStore
from luthier.core.errors import OutputError
from luthier.core.lock import FolderLock

META: Final = "meta.json"
FILES: Final = frozenset({META, *(f"{name}.npy" for name in DTYPES)})
DAY: Final = 24 * 3600.0
_WAIT: Final = 0.2

Notice = Callable[[str], None]
# Writes a store into a folder; returns what meta.json shall say, with `digest`, `files` (bytes of each) and `per_row`.
Make = Callable[[Path], Mapping[str, Any]]


class _DamagedError(Exception):
    """An entry that is there and cannot be used."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A store, what its meta.json says, and whether it had to be made."""

    store: TokenStore
    meta: Mapping[str, Any]
    made: bool


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What `clean` did, or would do: entries and bytes removed, entries kept for their age, and those in use."""

    folder: str
    removed: int
    bytes: int
    kept: int
    in_use: tuple[str, ...] = field(default_factory=tuple)


def data_folder() -> Path:
    """Where the entries lie. It may not exist yet."""
    return cache_folder() / "data"


def entry(key: str, make: Make, notice: Notice) -> Entry:
    """The entry of `key`, made by `make` where there is none, or a damaged one.

    Two processes make it once: the second waits, which `notice` hears, and takes over where the first one dies. Raises
    OutputError where the disk is full or the cache cannot be used, and whatever `make` raises; nothing is left then. An
    OSError of the source is to be raised as something else by `make`: those here are taken for the cache's own.
    """
    place = data_folder() / key
    with _errors_of(place.parent):
        found = _found(place)
        if found is not None:
            return found
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(place, notice)
        try:
            # Another process may have made it meanwhile.
            found = _found(place, notice)
            if found is not None:
                return found
            _make(place, make)
            return _opened(place, made=True)
        finally:
            lock.release()


def _found(place: Path, notice: Notice | None = None) -> Entry | None:
    try:
        return _opened(place, made=False)
    except FileNotFoundError:
        return None
    except _DamagedError as error:
        if notice is not None:
            notice(f"tokenised data in the cache is damaged, and made anew: {error}")
        return None


def _make(place: Path, make: Make) -> None:
    making = _making(place)
    # With the lock held nobody else is at work here: what lies there was left by a process that died, or is damaged.
    for old in (making, place):
        if old.exists():
            shutil.rmtree(old)
    try:
        with workshop(making) as folder:
            meta = make(folder)
            (folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            publish_folder(folder, place)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _making(place: Path) -> Path:
    return place.with_name(f".{place.name}")


def _lock_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.lock")


def _lock(place: Path, notice: Notice) -> FolderLock:
    told = False
    while True:
        try:
            lock = FolderLock.acquire(_lock_of(place))
        except OutputError as held:
            if not told:
                notice(f"waiting for a run that tokenises the same data: {held.message}")
                told = True
            time.sleep(_WAIT)
            continue
        if lock.notice:
            notice(f"tokenised data: {lock.notice}")
        return lock


def _opened(place: Path, *, made: bool) -> Entry:
    """Raises FileNotFoundError where there is no entry, or one that is just being removed."""
    if not place.is_dir():
        raise FileNotFoundError(place)
    try:
        descriptor = os.open(place / META, os.O_RDONLY)
    except FileNotFoundError as error:
        raise _DamagedError(f"{place} has no {META}") from error
    try:
        meta = _read(place, descriptor)
        store = TokenStore.open(place, meta["digest"], meta["per_row"])
        if len(store.ends) and int(store.ends[-1]) != len(store.ids):
            raise _DamagedError(f"{place}: the rows do not end where the tokens do")
    except (ValueError, KeyError, TypeError) as error:
        os.close(descriptor)
        raise _DamagedError(f"{place}: {error}") from error
    except BaseException:
        os.close(descriptor)
        raise
    # The lock goes with the descriptor, which stays open as long as the store is used.
    weakref.finalize(store, os.close, descriptor)
    with suppress(PermissionError):  # somebody else's entry, in a shared cache, is used all the same
        os.utime(place / META)
    return Entry(store, meta, made)


def _read(place: Path, descriptor: int) -> dict[str, Any]:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileNotFoundError(place) from error
    with os.fdopen(os.dup(descriptor), encoding="utf-8") as file:
        meta = json.load(file)
    for name, size in meta["files"].items():
        path = place / f"{name}.npy"
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise _DamagedError(f"{path} has {found} bytes, not {size}")
    return dict(meta)


@contextmanager
def _errors_of(folder: Path) -> Iterator[None]:
    """An OSError of the cache as what the user can do about it."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise OutputError(
                "the disk is full: the tokenised data does not fit",
                where=str(folder),
                fix=f"make room (`luthier data clean` removes tokenised data), or set {CACHE_VARIABLE} to another folder",
            ) from error
        raise OutputError(
            f"the cache of tokenised data cannot be used: {error.strerror or error}",
            where=str(folder),
            fix=f"set {CACHE_VARIABLE} to a folder that you may write to",
        ) from error


def clean(*, older_than: float | None = None, dry_run: bool = False) -> Cleaned:
    """Remove every entry, or those not used for `older_than` days, except those that a process uses or makes.

    Folders that hold anything else are left alone: LUTHIER_CACHE may name a folder in which somebody has a `data` already.
    """
    folder = data_folder()
    names = sorted({path.name.lstrip(".") for path in folder.iterdir() if _is_ours(path)}) if folder.is_dir() else []
    removed = size = kept = 0
    in_use: list[str] = []
    before = None if older_than is None else time.time() - older_than * DAY
    for name in names:
        place = folder / name
        if before is not None and _last_used(place) > before:
            kept += 1
            continue
        with _errors_of(folder):
            freed = _remove(place, dry_run=dry_run)
        if freed is None:
            in_use.append(name)
        else:
            removed += 1
            size += freed
    return Cleaned(folder=str(folder), removed=removed, bytes=size, kept=kept, in_use=tuple(in_use))


def _is_ours(path: Path) -> bool:
    """Whether it is a folder with the files of an entry and no others, or one in which an entry is made."""
    try:
        names = [] if path.is_symlink() or not path.is_dir() else os.listdir(path)
    except FileNotFoundError:  # somebody else has removed it meanwhile
        return False
    if path.name.startswith("."):
        return bool(names) and all(name.startswith(MAKING) for name in names)
    return bool(names) and FILES.issuperset(names)


def _last_used(place: Path) -> float:
    path = next((path for path in (place / META, place, _making(place)) if path.exists()), None)
    return path.stat().st_mtime if path else 0.0


def _remove(place: Path, *, dry_run: bool) -> int | None:
    """Bytes freed; None when the entry is in use."""
    try:
        lock = FolderLock.acquire(_lock_of(place))
    except OutputError:
        return None
    try:
        with _unused(place / META) as free:
            if not free:
                return None
            folders = [path for path in (place, _making(place)) if _is_ours(path)]
            size = sum(file.stat().st_size for path in folders for file in path.rglob("*") if file.is_file())
            for path in folders if not dry_run else ():
                shutil.rmtree(path)
            return size
    finally:
        lock.release()


@contextmanager
def _unused(meta: Path) -> Iterator[bool]:
    """Whether nobody holds the entry; nobody can take it within the block."""
    try:
        descriptor = os.open(meta, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
