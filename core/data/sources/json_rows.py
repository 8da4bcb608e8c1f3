"""Rows of JSON: a .jsonl file line by line, and the one list of a .json file object by object, whatever its size.

The list is read through a window of text that grows only while an object does not fit in it, so that a file of many
gigabytes needs as much memory as its largest row, and each row knows its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from luthier.core.data.sources.files import DataFile
from luthier.core.data.sources.opening import lines_of, text_chunks
from luthier.core.data.sources.row import Skip, SourceRow
from luthier.core.errors import DataError
from luthier.core.rows import shown_type

_BLANK: Final = re.compile(r"[ \t\r\n]*")
# An error this close to the end of the window may be about what follows it: the longest literal and escape are shorter.
_MARGIN: Final = 16
_LIST_FIX: Final = "a .json file holds one list of objects, `[{...}, {...}]`"
_LINES_FIX: Final = "in a .jsonl file every line is one whole object; a list of objects belongs into a .json file"


def rows_of_lines(file: DataFile, skip: Skip) -> Iterator[SourceRow]:
    """One object a line; blank lines hold no row, and skipped lines are not parsed."""
    shown = file.shown
    for number, line in lines_of(file):
        if not line or line.isspace() or skip.passes():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            column = error.colno if isinstance(error, json.JSONDecodeError) else 1
            raise _bad_json(error, f"{shown}:{number}", column, _LINES_FIX) from error
        yield SourceRow(shown, number, _object(value, f"{shown}:{number}", _LINES_FIX))


def count_lines(file: DataFile) -> int:
    """How many rows a file has whose rows are its lines that are not blank."""
    return sum(1 for _, line in lines_of(file) if line and not line.isspace())


def rows_of_list(file: DataFile, skip: Skip) -> Iterator[SourceRow]:
    """The objects of one list in order."""
    shown, window = file.shown, _Window(file)
    begin = window.skip_blank()
    if not begin:
        return
    if begin != "[":
        line, _ = window.place(window.position)
        raise DataError("does not hold a list of objects", where=f"{shown}:{line}", fix=_without_list(window))
    separator = window.next()
    if separator == "]":
        separator = ""
    else:
        separator = ","
    while separator == ",":
        value, line = window.value()
        row = _object(value, f"{shown}:{line}", _LIST_FIX)
        if not skip.passes():
            yield SourceRow(shown, line, row)
        separator = window.skip_blank()
        if separator == ",":
            window.next()
        elif separator != "]":
            raise window.bad("Expecting ',' or ']'")
    if window.next():
        raise window.bad("Extra data after the list")


class _Window:
    """The part of a file's text that is being parsed. `position` is where parsing stands in `text`."""

    def __init__(self, file: DataFile) -> None:
        self._shown = file.shown
        self._chunks = text_chunks(file)
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode
        self.text, self.position = "", 0
        # The line at text[_counted], and where that line begins in `text`: before it, once the window has moved on.
        self._line, self._counted, self._begin = 1, 0, 0

    def place(self, index: int) -> tuple[int, int]:
        """Line and column of text[index], which must not lie before a place that was asked for earlier."""
        newlines = self.text.count("\n", self._counted, index)
        if newlines:
            self._line += newlines
            self._begin = self.text.rindex("\n", self._counted, index) + 1
        self._counted = index
        return self._line, index - self._begin + 1

    def skip_blank(self) -> str:
        """Move over white space; gives the character there, or "" at the end of the file."""
        while True:
            match = _BLANK.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if self._ended:
                return ""
            self._grow()

    def next(self) -> str:
        """Move over the character at hand and the white space after it; gives the character there."""
        self.position += 1
        return self.skip_blank()

    def value(self) -> tuple[Any, int]:
        """The value that begins here and its line; raises DataError for what is no JSON."""
        line, _ = self.place(self.position)
        while True:
            try:
                value, self.position = self._decode(self.text, self.position)
                return value, line
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _MARGIN
                if self._ended or not cut_off:
                    raise self.bad(error.msg, error.pos) from error
                self._grow()
            except (ValueError, RecursionError) as error:
                raise _bad_json(error, f"{self._shown}:{line}", 1, _LIST_FIX) from error

    def bad(self, message: str, index: int | None = None) -> DataError:
        line, column = self.place(self.position if index is None else index)
        return DataError(f"bad JSON: {message} (column {column})", where=f"{self._shown}:{line}", fix=_LIST_FIX)

    def _grow(self) -> None:
        """Drop what lies behind, and read on until what lies ahead has doubled."""
        self.place(self.position)
        kept = self.text[self.position :]
        self._begin -= self.position
        self._counted = self.position = 0
        pieces, wanted = [kept], max(1, len(kept))
        while wanted > 0 and not self._ended:
            piece = next(self._chunks, None)
            if piece is None:
                self._ended = True
            else:
                pieces.append(piece)
                wanted -= len(piece)
        self.text = "".join(pieces)


def _without_list(window: _Window) -> str:
    try:
        _, end = json.JSONDecoder().raw_decode(window.text, window.position)
    except (ValueError, RecursionError):
        return _LIST_FIX
    match = _BLANK.match(window.text, end)
    if match and window.text[match.end() :].startswith("{"):
        return "it looks like JSON Lines, one object after another: say `type: jsonl`, or name the file .jsonl"
    return _LIST_FIX


def _object(value: object, where: str, fix: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"the row is {shown_type(value)}, not an object", where=where, fix=fix)
    return value


def _bad_json(error: Exception, where: str, column: int, fix: str) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"bad JSON: {error.msg} (column {column})", where=where, fix=fix)
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"bad JSON: {reason}", where=where, fix=fix)
