"""Names of data files: which type and compression a name stands for, what is a URL and what a glob."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from luthier.core.config.schema import AUTO
from luthier.core.errors import DataError

TYPES: Final = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
}
COMPRESSIONS: Final = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
TABLES: Final = ("parquet", "arrow")
# In a folder of data these describe it, as `datasets` and LLaMA-Factory write them.
DESCRIPTIONS: Final = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file: its local path or URL, how it is written, and the name that errors and reports give it."""

    path: str
    type: str
    compression: str = ""
    encoding: str = "utf-8"

    @property
    def is_remote(self) -> bool:
        return is_url(self.path)

    @property
    def shown(self) -> str:
        """The path; a URL without user, password and query, which may hold secrets."""
        return shown_path(self.path)


def is_url(path: str) -> bool:
    """Whether it is a URL; `file://` ones are local paths by the time this is asked."""
    return _URL.match(path) is not None


def shown_path(path: str) -> str:
    """A path as it is; a URL without what may be secret."""
    if not is_url(path) or "::" in path:
        return path
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?...' if parts.query else ''}"


def has_wildcard(path: str) -> bool:
    """Whether a path is a glob. In a URL a `?` begins the query, so that only `*` counts there."""
    return "*" in path if is_url(path) else any(mark in path for mark in "*?[")


def type_of(path: str) -> tuple[str, str]:
    """Type and compression that a name stands for; "" for what it does not tell."""
    name = PurePosixPath(path.partition("::")[0] if is_url(path) else path.replace("\\", "/"))
    compression = COMPRESSIONS.get(name.suffix.lower(), "")
    below = PurePosixPath(name.stem) if compression else name
    found = TYPES.get(below.suffix.lower(), "")
    if not found and is_url(path) and (urlsplit(path).query or urlsplit(path).fragment):
        return type_of(path.partition("?")[0].partition("#")[0])
    return found, compression


def data_file(path: str, type_: str, encoding: str) -> DataFile:
    """The file of that path; raises DataError when its name does not tell the type and the configuration neither."""
    found, compression = type_of(path)
    if type_ == AUTO and not found:
        suffix = PurePosixPath(shown_path(path).removesuffix("?...")).suffix or "file without a suffix"
        raise DataError(
            f"cannot tell from the name how a {suffix} is written",
            where=shown_path(path),
            fix=f"say `type: jsonl`, or which it is; known names end in {known_suffixes()}",
        )
    return DataFile(path, found if type_ == AUTO else type_, compression, encoding)


def chosen(paths: Iterable[str], type_: str) -> tuple[list[str], list[str]]:
    """The data files among the files of a folder or glob, and the others.

    With a given type these are the files named as that type, or, when no name tells any type, all of them.
    """
    data, others, untold = [], [], []
    telling = False
    for path in paths:
        name = PurePosixPath(path.replace("\\", "/")).name
        found = "" if name in DESCRIPTIONS else type_of(path)[0]
        telling = telling or bool(found)
        if found and type_ in (AUTO, found):
            data.append(path)
        elif not found and type_ != AUTO and name not in DESCRIPTIONS:
            untold.append(path)
        else:
            others.append(path)
    return (data, others + untold) if telling else (untold, others)


def one_type(files: list[DataFile], where: str) -> list[DataFile]:
    """The files, which must all be of one type; raises DataError naming one file of each otherwise."""
    first: dict[str, DataFile] = {}
    for file in files:
        first.setdefault(file.type, file)
    if len(first) > 1:
        examples = ", ".join(f"{kind} ({PurePosixPath(file.path).name})" for kind, file in sorted(first.items()))
        kind, file = min(first.items())
        raise DataError(
            f"holds files of several types: {examples}",
            where=where,
            fix=f"make a source of each, with a glob such as *{PurePosixPath(file.path).suffix}, or say `type: {kind}`",
        )
    return files


def known_suffixes() -> str:
    return f"{', '.join(TYPES)}, each also with {', '.join(COMPRESSIONS)} after it"
