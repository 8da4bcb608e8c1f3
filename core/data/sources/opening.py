"""From a file to its bytes and its text: decompressed and decoded piece by piece, nothing is held whole.

An archive that is damaged or ends too early raises BrokenArchive wherever that shows; who reads rows knows which row it was.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import io
import lzma
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, Final, cast

from luthier.core.data.sources.files import DataFile
from luthier.core.data.sources.remote import open_url
from luthier.core.errors import DataError, MissingEnvironmentError

CHUNK: Final = 1 << 18
_ZSTD_INPUT: Final = 1 << 14


class BrokenArchive(Exception):
    """A compressed file whose content is damaged or ends before its end mark."""


def needed(module: str, what: str) -> Any:
    """A module of the extra `data`; raises MissingEnvironmentError saying how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingEnvironmentError(
            f"{what} cannot be read: the package {package} is not installed", fix="pip install 'luthier[data]'"
        ) from error


def open_stored(file: DataFile) -> AbstractContextManager[BinaryIO]:
    """The bytes as they are stored."""
    return open_url(file.path) if file.is_remote else open(file.path, "rb")


@contextmanager
def open_bytes(file: DataFile) -> Iterator[BinaryIO]:
    """The bytes, decompressed while they are read. Raises BrokenArchive from any read."""
    with open_stored(file) as stored:
        if not file.compression:
            yield stored
            return
        yield cast(BinaryIO, _Archive(_decompressed(stored, file.compression)))


@contextmanager
def open_seekable(file: DataFile) -> Iterator[BinaryIO]:
    """The same for readers that jump: what cannot be jumped in is copied to a temporary file first."""
    with open_bytes(file) as stream:
        if not file.compression and stream.seekable():
            yield stream
            return
        with tempfile.TemporaryFile() as copy:
            while piece := stream.read(CHUNK):
                copy.write(piece)
            copy.seek(0)
            yield cast(BinaryIO, copy)


def text_chunks(file: DataFile) -> Iterator[str]:
    """The text in pieces. Raises DataError, with the line, where the bytes are not of the file's encoding."""
    decoder = _decoder(file)
    line, column = 1, 1
    with open_bytes(file) as stream:
        read = getattr(stream, "read1", stream.read)
        while True:
            # One piece from below at a time: what came before a fault is read before the fault is met.
            raw = read(CHUNK)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                # The rows before the fault are rows: they are given first, and the fault is reported when it is reached.
                name = file.encoding if error.encoding == "charmap" else error.encoding
                before = bytes(error.object[: error.start]).decode(name, errors="ignore")
                yield before
                line, column = _moved(before, line, column)
                raise _wrong_encoding(file, error, line, column) from error
            yield text
            if not raw:
                return
            line, column = _moved(text, line, column)


def lines_of(file: DataFile) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, from 1, without the newline; only a newline ends a line."""
    number, pending = 0, list[str]()
    for text in text_chunks(file):
        *whole, rest = text.split("\n")
        if whole and pending:
            whole[0] = "".join((*pending, whole[0]))
            pending.clear()
        for number, line in enumerate(whole, number + 1):  # noqa: B020
            yield number, line
        if rest:
            pending.append(rest)
    if pending:
        yield number + 1, "".join(pending)


def _moved(text: str, line: int, column: int) -> tuple[int, int]:
    newlines = text.count("\n")
    return (line + newlines, len(text) - text.rfind("\n")) if newlines else (line, column + len(text))


def _decoder(file: DataFile) -> codecs.IncrementalDecoder:
    try:
        "".encode(file.encoding)  # refuses codecs that are no character encodings
        found = codecs.lookup(file.encoding)
    except LookupError as error:
        fix = "take a name that Python knows, such as utf-8, utf-16, latin-1, cp1252, gb18030 or shift_jis"
        raise DataError(f"there is no encoding {file.encoding!r}", where=file.shown, fix=fix) from error
    return codecs.getincrementaldecoder("utf-8-sig" if found.name == "utf-8" else found.name)()


def _wrong_encoding(file: DataFile, error: UnicodeDecodeError, line: int, column: int) -> DataError:
    shown = " ".join(f"0x{byte:02x}" for byte in error.object[error.start : min(error.end, error.start + 4)])
    name = codecs.lookup(file.encoding).name
    fix = "say how it is written, such as `encoding: latin-1`, or convert it: iconv -f latin1 -t utf-8"
    if (line, column) == (1, 1) and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        fix = "it begins like UTF-16: say `encoding: utf-16`"
    return DataError(
        f"is not {name.upper()}: {shown or 'the end of the file'} at character {column} of the line ({error.reason})",
        where=f"{file.shown}:{line}",
        fix=fix,
    )


def _decompressed(stored: BinaryIO, compression: str) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=stored)
    if compression == "bzip2":
        return bz2.BZ2File(stored)
    if compression == "xz":
        return lzma.LZMAFile(stored)
    return _Zstandard(stored)


class _Archive(io.RawIOBase):
    """A decompressing stream that gives what it has before it raises BrokenArchive."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read1(len(buffer))
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise BrokenArchive(str(error)) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise BrokenArchive(str(error)) from error  # how gzip and bz2 say that the bytes are wrong
        buffer[: len(data)] = data
        return len(data)


class _Zstandard:
    """Zstandard frames one after another. The library's own reader takes a file that was cut off for a whole one."""

    def __init__(self, stored: BinaryIO) -> None:
        self._library = needed("zstandard", "a .zst file")
        self._stored, self._have = stored, memoryview(b"")
        self._frame: Any = None

    def read1(self, size: int) -> memoryview:
        while not self._have:
            raw = self._stored.read(_ZSTD_INPUT)
            if not raw:
                if self._frame is not None:
                    raise EOFError("the file ends before its end mark")
                break
            # A view: of content that repeats itself a few bytes become megabytes, which each slice would copy.
            self._have = memoryview(b"".join(self._frames(raw)))
        data, self._have = self._have[:size], self._have[size:]
        return data

    def _frames(self, raw: bytes) -> Iterator[bytes]:
        while raw:
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                yield self._frame.decompress(raw)
            except self._library.ZstdError as error:
                raise EOFError(str(error)) from error
            raw = b""
            if self._frame.eof:
                raw, self._frame = self._frame.unused_data, None
