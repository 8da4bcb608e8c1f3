"""Rows of .json and .jsonl files, each with the line it stands on.

A relative path is looked for in the current folder first, then beside the configuration file: a path typed on the command
line means what it means to the shell, and a configuration file can be run from anywhere. Every error names file and line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError
from luthier.core.extensions import Row

SUFFIXES: Final = (".json", ".jsonl")
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_BOM: Final = b"\xef\xbb\xbf"
_LIST_FIX: Final = "a .json file holds one list of objects, `[{...}, {...}]`"
_LINES_FIX: Final = "in a .jsonl file every line is one whole object; a list of objects belongs into a .json file"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One object of a file; `line` is where it begins, counted from 1."""

    path: Path
    line: int
    value: Row

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


def locate(path: str, base: Path | None = None) -> Path:
    """The file that `path` means: in the current folder, else in `base`, the configuration file's folder.

    Raises DataError when there is none, when it is a folder, or when its name ends in neither .json nor .jsonl.
    """
    written = Path(path).expanduser()
    candidates = [written] if base is None or written.is_absolute() else [written, base / written]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        raise DataError("there is no such data file", where=path, fix=_nearest(candidates))
    if found.is_dir():
        inside = sorted(child.name for child in found.iterdir() if child.suffix in SUFFIXES)
        fix = f"name a file in it: {', '.join(inside[:5])}" if inside else "name a .json or .jsonl file"
        raise DataError("is a folder, not a data file", where=str(found), fix=fix)
    if found.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"cannot read a {found.suffix or 'file without a suffix'}: data files are .json or .jsonl",
            where=str(found),
            fix=f"convert it; {_LINES_FIX}",
        )
    return found


def read_rows(path: Path, limit: int | None = None) -> Iterator[SourceRow]:
    """The objects of a file in order, at most `limit`; lines that are blank hold no row.

    Raises DataError, with file and line, for bad JSON, a value that is no object, bytes that are not UTF-8, or no rows.
    """
    rows = _rows_of_list(path) if path.suffix.lower() == ".json" else _rows_of_lines(path)
    empty = True
    try:
        for row in islice(rows, limit):
            empty = False
            yield row
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    if empty:
        raise DataError("holds no rows", where=str(path), fix="check that the file was written completely")


def count_rows(path: Path, limit: int | None = None) -> int:
    """How many rows `read_rows` will give; the lines of a .jsonl file are counted without being parsed."""
    if path.suffix.lower() == ".json":
        return sum(1 for _ in read_rows(path, limit))
    with path.open("rb") as lines:
        return sum(1 for _ in islice((line for line in lines if line.strip()), limit))


def _rows_of_lines(path: Path) -> Iterator[SourceRow]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            text = _decoded(raw.removeprefix(_BOM) if number == 1 else raw, path, first_line=number)
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise _bad_json(error, path, number, _LINES_FIX) from error
            yield _object(value, path, number, _LINES_FIX)


def _rows_of_list(path: Path) -> Iterator[SourceRow]:
    # One element at a time, so that each row knows its line; json.load would give the list without positions.
    text = _decoded(path.read_bytes().removeprefix(_BOM), path, first_line=1)
    decode = json.JSONDecoder().raw_decode
    position = _skip_blank(text, 0)
    if position == len(text):
        return
    line = 1 + text.count("\n", 0, position)
    if text[position] != "[":
        raise DataError("does not hold a list of objects", where=f"{path}:{line}", fix=_without_list(text, position))
    counted_to = position
    position = _skip_blank(text, position + 1)
    first = True
    while first or text[position : position + 1] == ",":
        if not first:
            position = _skip_blank(text, position + 1)
        elif text[position : position + 1] == "]":
            break
        line += text.count("\n", counted_to, position)
        counted_to = position
        try:
            value, position = decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _bad_json(error, path, line, _LIST_FIX) from error
        yield _object(value, path, line, _LIST_FIX)
        position = _skip_blank(text, position)
        first = False
    if text[position : position + 1] != "]":
        raise _bad_json(json.JSONDecodeError("Expecting ',' or ']'", text, position), path, line, _LIST_FIX)
    rest = _skip_blank(text, position + 1)
    if rest < len(text):
        raise _bad_json(json.JSONDecodeError("Extra data after the list", text, rest), path, line, _LIST_FIX)


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _without_list(text: str, position: int) -> str:
    try:
        _, end = json.JSONDecoder().raw_decode(text, position)
    except (ValueError, RecursionError):
        return _LIST_FIX
    if text[_skip_blank(text, end) :].startswith("{"):
        return "it looks like JSON Lines, one object after another: name the file .jsonl"
    return _LIST_FIX


def _object(value: object, path: Path, line: int, fix: str) -> SourceRow:
    if not isinstance(value, Mapping):
        raise DataError(f"the row is {json_type(value)}, not an object", where=f"{path}:{line}", fix=fix)
    return SourceRow(path, line, value)


def _decoded(raw: bytes, path: Path, *, first_line: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise DataError(
            f"is not UTF-8: byte 0x{raw[error.start]:02x} at byte {column} of the line",
            where=f"{path}:{line}",
            fix=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}",
        ) from error


def _bad_json(error: Exception, path: Path, line: int, fix: str) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        if path.suffix.lower() == ".json":
            line = error.lineno
        return DataError(f"bad JSON: {error.msg} (column {error.colno})", where=f"{path}:{line}", fix=fix)
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"bad JSON: {reason}", where=f"{path}:{line}", fix=fix)


def json_type(value: object) -> str:
    """What JSON calls a value, with its article: "a list", "a number", "null"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, Mapping) else "a list"


def _nearest(candidates: list[Path]) -> str:
    folders = [candidate.parent for candidate in candidates if candidate.parent.is_dir()]
    paths = {child.name: child for folder in reversed(folders) for child in folder.iterdir()}
    near = difflib.get_close_matches(candidates[0].name, paths, n=1, cutoff=0.6)
    if near:
        return f"did you mean {paths[near[0]]}?"
    looked = " and ".join(str(candidate.parent.resolve()) for candidate in candidates)
    return f"check the path; it was looked for in {looked}"
