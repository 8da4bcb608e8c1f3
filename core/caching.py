"""The user's cache folder: models, tokenised data and measurements, written so that two processes can do it at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from luthier.core.atomic import sync_tree

CACHE_VARIABLE: Final = "LUTHIER_CACHE"
MAKING: Final = ".making-"


def cache_folder() -> Path:
    """`LUTHIER_CACHE` where it is set, else the system's cache folder for this user. It may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("luthier"))


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A temporary folder beside what will be made, on the same file system, so that a rename publishes it; always removed.

    Raises OSError when `folder` cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=MAKING, dir=folder, ignore_cleanup_errors=True) as made:
        yield Path(made)


def publish_folder(made: Path, place: Path) -> None:
    """Rename the finished folder `made` to `place`. Where another process was first its folder stays: both are the same.

    Raises OSError for anything else that is in the way.
    """
    sync_tree(made)
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():
            raise
