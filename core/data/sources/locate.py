"""From `path` to files: a file, every data file of a folder, or what a glob matches, here or behind a URL.

A relative path is looked for in the current folder first, then beside the configuration file: a path typed on the command
line means what it means to the shell, and a configuration file can be run from anywhere.
"""

from __future__ import annotations

import difflib
import glob
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from luthier.core.config.schema import SourceConfig
from luthier.core.data.sources import remote
from luthier.core.data.sources.files import (
    DataFile,
    chosen,
    data_file,
    has_wildcard,
    is_url,
    known_suffixes,
    one_type,
    shown_path,
)
from luthier.core.data.sources.permission import check_elsewhere, check_local, is_allowed
from luthier.core.errors import DataError


@dataclass(frozen=True)
class Found:
    """The files of a source in order, and what to call it: "data (12 files, 2 others left out)"."""

    files: tuple[DataFile, ...]
    name: str


def place(path: str, base: Path | None = None) -> str:
    """A path made absolute, as a run keeps it; a URL, and a path where nothing is, stay as they are."""
    path = _local(path)
    if is_url(path):
        return path
    for candidate in _candidates(path, base):
        if candidate.exists() or (has_wildcard(path) and _matches(candidate)):
            return str(candidate.absolute())
    return path


def find(source: SourceConfig, base: Path | None = None) -> Found:
    """The files that `source.path` means. Raises DataError when there are none, or they are of several types."""
    path = _local(source.path or "")
    if is_url(path):
        check_elsewhere(shown_path(path), "a URL")
        paths, several = remote.paths_of(path)
    else:
        paths, several = _local_paths(path, base)
    for each in paths if not is_url(path) else ():
        check_local(each)
    if not several:
        file = data_file(paths[0], source.type, source.encoding)
        return Found((file,), file.shown)
    data, others = chosen(paths, source.type)
    shown = shown_path(path)
    if not data:
        asked = "data file" if source.type == "auto" else f"{source.type} file"
        names = ", ".join(Path(other).name for other in others[:5]) or "it is empty"
        raise DataError(f"holds no {asked}: {names}", where=shown, fix=f"data files end in {known_suffixes()}")
    files = one_type([data_file(each, source.type, source.encoding) for each in data], shown)
    rest = f", {len(others)} other{'s' if len(others) > 1 else ''} left out" if others else ""
    return Found(tuple(files), f"{shown} ({len(files)} file{'s' if len(files) > 1 else ''}{rest})")


def _local(path: str) -> str:
    if path.startswith("file://"):
        from urllib.request import url2pathname  # brings http and ssl along

        return url2pathname(urlsplit(path).path)
    return path


def _local_paths(path: str, base: Path | None) -> tuple[list[str], bool]:
    candidates = _candidates(path, base)
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is not None:
        if not found.is_dir():
            check_local(found)
            if found.is_fifo():  # opening it would wait for a writer, and nothing can be read from it twice
                raise DataError("is a pipe, and rows are read more than once", where=path, fix="write it into a file first")
            return [str(found)], False
        check_local(found)
        return _inside(found), True
    if not any(map(is_allowed, candidates)):
        check_local(candidates[0])  # what there is elsewhere is not told either
    if has_wildcard(path):
        matches = next((matches for candidate in candidates if (matches := _matches(candidate))), None)
        if matches:
            return matches, True
        folders = " or ".join(str(candidate.absolute()) for candidate in candidates)
        raise DataError("matches no file", where=path, fix=f"check the pattern: nothing is called {folders}")
    raise DataError("there is no such data file", where=path, fix=_nearest(candidates))


def _candidates(path: str, base: Path | None) -> list[Path]:
    written = Path(path).expanduser()
    return [written] if base is None or written.is_absolute() else [written, base / written]


def _matches(pattern: Path) -> list[str]:
    """The files that a glob matches, `**` at any depth, in the order of their names; names with a dot at the start not."""
    return sorted(match for match in glob.glob(str(pattern), recursive=True) if Path(match).is_file())


def _inside(folder: Path) -> list[str]:
    """The files in a folder and the folders in it, in the order of their paths, without hidden ones."""
    paths = []
    for parent, folders, names in os.walk(folder, followlinks=False, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if Path(parent, name).is_symlink()]
        paths += [Path(parent, name) for name in [*names, *linked] if not name.startswith(".")]
    return [str(path) for path in sorted(paths, key=lambda path: path.relative_to(folder).parts)]


def _unreadable(error: OSError) -> None:
    raise DataError(f"cannot be read: {error.strerror or error}", where=str(error.filename)) from error


def _nearest(candidates: list[Path]) -> str:
    folders = [candidate.parent for candidate in candidates if candidate.parent.is_dir() and is_allowed(candidate.parent)]
    paths = {child.name: child for folder in reversed(folders) for child in folder.iterdir()}
    near = difflib.get_close_matches(candidates[0].name, paths, n=1, cutoff=0.6)
    if near:
        return f"did you mean {paths[near[0]]}?"
    looked = " and ".join(str(candidate.parent.resolve()) for candidate in candidates)
    return f"check the path; it was looked for in {looked}"
