"""Entries of the cache: made once, whole or not there, waited for, repaired, and removed when nobody uses them."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.data.cache import Entry, clean, data_folder, entry
from luthier.core.data.store import Chunk, write_store
from luthier.core.errors import DataError, OutputError
from luthier.core.lock import FolderLock

CHUNK = Chunk.of([5, 6, 7, 8], b"\0\1\1\0", [3, 1], [11, 12], [None, None])


class Shop:
    """Makes entries, and remembers how often and what was said."""

    def __init__(self) -> None:
        self.made = 0
        self.said: list[str] = []

    def make(self, folder: Path) -> dict[str, Any]:
        self.made += 1
        digest, files = write_store(folder, [CHUNK])
        return {"digest": digest, "files": files, "per_row": 1, "note": "hello"}

    def get(self, key: str = "key", make: Callable[[Path], dict[str, Any]] | None = None) -> Entry:
        return entry(key, make or self.make, self.said.append)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def names() -> list[str]:
    return sorted(path.name for path in data_folder().iterdir())


def test_made_once_and_found_again(shop: Shop, private_cache: Path) -> None:
    first, second = shop.get(), shop.get()
    assert (first.made, second.made, shop.made) == (True, False, 1)
    assert second.store.ids.tolist() == first.store.ids.tolist() == [5, 6, 7, 8]
    assert (second.store.digest, second.meta["note"]) == (first.store.digest, "hello")
    assert data_folder() == private_cache / "data"
    assert names() == ["key"]
    assert {path.suffix for path in (data_folder() / "key").iterdir()} == {".npy", ".json"}
    assert (shop.get("other").made, shop.said) == (True, [])


@pytest.mark.parametrize("harm", ["cut", "lost", "no meta", "half a meta", "other meta", "wrong ends"])
def test_a_damaged_entry_is_made_anew_and_said_once(shop: Shop, harm: str) -> None:
    shop.get()
    folder = data_folder() / "key"
    meta = folder / "meta.json"
    if harm == "cut":
        os.truncate(folder / "ids.npy", (folder / "ids.npy").stat().st_size - 4)
    elif harm == "lost":
        (folder / "trained.npy").unlink()
    elif harm == "no meta":
        meta.unlink()
    elif harm == "half a meta":
        meta.write_text(meta.read_text()[:20])
    elif harm == "other meta":
        meta.write_text(json.dumps([1, 2]))
    else:
        ends = (folder / "ends.npy").read_bytes()
        (folder / "ends.npy").write_bytes(ends[:-8] + (9).to_bytes(8, "little"))
    again = shop.get()
    assert (again.made, shop.made) == (True, 2)
    (said,) = shop.said
    assert said.startswith("tokenised data in the cache is damaged, and made anew: ")
    assert str(folder) in said
    assert again.store.ids.tolist() == [5, 6, 7, 8]
    assert (shop.get().made, len(shop.said), names()) == (False, 1, ["key"])


@pytest.mark.parametrize("error", [DataError("bad row"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(shop: Shop, error: BaseException) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "ids.npy").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        shop.get(make=fail)
    assert names() == []
    assert shop.get().made


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(shop: Shop, code: int) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "ids.npy").write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(OutputError, match="the disk is full") as caught:
        shop.get(make=fail)
    assert caught.value.where == str(data_folder())
    assert "luthier data clean" in caught.value.fix
    assert "LUTHIER_CACHE" in caught.value.fix
    assert names() == []


def test_a_cache_that_is_a_file(shop: Shop, private_cache: Path) -> None:
    private_cache.write_text("no folder")
    with pytest.raises(OutputError, match="cannot be used") as caught:
        shop.get()
    assert "LUTHIER_CACHE" in caught.value.fix


def test_the_second_waits_for_the_first(shop: Shop) -> None:
    """Two threads stand for two processes here: the lock is the kernel's, and is held by an open file."""
    begun, go = threading.Event(), threading.Event()
    second = Shop()
    found: dict[str, Entry] = {}

    def slowly(folder: Path) -> dict[str, Any]:
        begun.set()
        assert go.wait(30)
        return shop.make(folder)

    one = threading.Thread(target=lambda: found.update(one=shop.get(make=slowly)))
    one.start()
    assert begun.wait(30)
    two = threading.Thread(target=lambda: found.update(two=second.get()))
    two.start()
    while not second.said:
        time.sleep(0.01)
    go.set()
    one.join(30)
    two.join(30)
    assert (found["one"].made, found["two"].made) == (True, False)
    assert (shop.made, second.made, shop.said) == (1, 0, [])
    (said,) = second.said
    assert said.startswith("waiting for a run that tokenises the same data: ")
    assert f"process {os.getpid()}" in said
    assert names() == ["key"]


def test_what_a_dead_process_left_is_swept_away(shop: Shop) -> None:
    left = data_folder() / ".key" / ".making-x"
    left.mkdir(parents=True)
    (left / "ids.npy").write_bytes(b"half")
    (data_folder() / "key.lock").write_text(json.dumps({"pid": 2**22 + 1, "host": "here"}))
    assert shop.get().made
    assert shop.said == [f"tokenised data: took over the lock of process {2**22 + 1}, which has ended"]
    assert names() == ["key"]


def test_clean_removes_what_nobody_uses(shop: Shop) -> None:
    held = shop.get("held")
    shop.get("free")
    gc.collect()
    size = sum(file.stat().st_size for file in (data_folder() / "free").iterdir())
    tried = clean(dry_run=True)
    assert (tried.removed, tried.bytes, tried.kept, tried.in_use) == (1, size, 0, ("held",))
    assert names() == ["free", "held"]
    assert clean() == tried
    assert names() == ["held"]
    assert held.store.ids.tolist() == [5, 6, 7, 8]
    del held
    gc.collect()
    assert clean().removed == 1
    assert (names(), clean().removed) == ([], 0)


def test_clean_by_the_time_of_the_last_use(shop: Shop) -> None:
    for key, days in (("old", 40), ("used", 40), ("new", 1)):
        shop.get(key)
        then = time.time() - days * 86400
        os.utime(data_folder() / key / "meta.json", (then, then))
    shop.get("used")
    gc.collect()
    cleaned = clean(older_than=30)
    assert (cleaned.removed, cleaned.kept, names()) == (1, 2, ["new", "used"])


def test_clean_leaves_what_is_being_made_and_sweeps_what_was_left(shop: Shop) -> None:
    for key in ("making", "left"):
        folder = data_folder() / f".{key}" / ".making-x"
        folder.mkdir(parents=True)
        (folder / "ids.npy").write_bytes(b"12345")
    lock = FolderLock.acquire(data_folder() / "making.lock")
    cleaned = clean()
    assert (cleaned.removed, cleaned.bytes, cleaned.in_use) == (1, 5, ("making",))
    lock.release()
    assert names() == [".making"]


def test_nothing_to_clean(private_cache: Path) -> None:
    assert not private_cache.exists()
    assert clean().removed == 0
    assert not private_cache.exists()


def test_an_entry_that_is_removed_while_it_is_used_still_reads(shop: Shop) -> None:
    """Somebody may empty the cache by hand."""
    held = shop.get()
    shutil.rmtree(data_folder() / "key")
    assert held.store.ids.tolist() == [5, 6, 7, 8]
    assert shop.get().made
