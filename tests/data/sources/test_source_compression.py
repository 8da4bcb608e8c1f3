"""Compressed files: every type in every compression gives the same rows, and an archive that breaks off says where."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import MissingEnvironmentError

zstandard = pytest.importorskip("zstandard")
pa = pytest.importorskip("pyarrow")

ROWS = [{"text": f"row {index}", "answer": 'a "b",\tü'} for index in range(50)]
SUFFIXES = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
    "": lambda data: data,
}


def cells(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([tuple(ROWS[0]), *(tuple(row.values()) for row in ROWS)])
    return text.getvalue().encode()


def table(kind: str) -> bytes:
    import pyarrow.feather
    import pyarrow.parquet

    sink = io.BytesIO()
    write = pyarrow.parquet.write_table if kind == "parquet" else pyarrow.feather.write_feather
    write(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


CONTENTS: dict[str, Callable[[], bytes]] = {
    ".json": lambda: json.dumps(ROWS, indent=1).encode(),
    ".jsonl": lambda: "\n".join(map(json.dumps, ROWS)).encode(),
    ".csv": lambda: cells(","),
    ".tsv": lambda: cells("\t"),
    ".txt": lambda: "\n".join(row["text"] for row in ROWS).encode(),
    ".parquet": lambda: table("parquet"),
    ".arrow": lambda: table("arrow"),
}


@pytest.mark.parametrize("compression", SUFFIXES)
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_type_in_every_compression(written, opened, kind: str, compression: str) -> None:
    expected: list[dict[str, Any]] = [{"text": row["text"]} for row in ROWS] if kind == ".txt" else list(ROWS)
    path = written(f"rows{kind}{compression}", SUFFIXES[compression](CONTENTS[kind]()))
    for streaming in (False, True):
        source = opened(path, streaming=streaming)
        assert [row.value for row in source.rows()] == expected
        assert [row.value for row in source.rows(33)] == expected[33:]
        assert [row.value for row in opened(path, rows=7, streaming=streaming).rows(5)] == expected[5:7]
    assert opened(path).count() == 50
    by_type = opened(written(f"rows.data{compression}", path.read_bytes()), type=kind[1:].replace("txt", "text"))
    assert [row.value for row in by_type.rows(49)] == expected[49:]


@pytest.fixture
def long_lines() -> bytes:
    """60,000 lines that do not compress to nothing."""
    drawn = random.Random(0)
    return b"".join(b'{"n": %d, "x": "%s"}\n' % (index, drawn.randbytes(20).hex().encode()) for index in range(60_000))


@pytest.mark.parametrize("compression", [suffix for suffix in SUFFIXES if suffix])
def test_an_archive_that_is_cut_off_says_after_which_row(
    written, opened, fault, long_lines: bytes, compression: str
) -> None:
    whole = SUFFIXES[compression](long_lines)
    path = written(f"rows.jsonl{compression}", whole[: len(whole) * 2 // 3])
    error = fault(path)
    line = int(error.where.rpartition(":")[2])
    assert "the archive is damaged or cut off after line" in error.message
    assert str(line - 1) in error.message
    # Two thirds of the bytes hold about two thirds of the rows; bz2 gives whole blocks of 900 kB, 15,000 rows.
    assert (25_000 if compression == ".bz2" else 36_000) < line < 42_000
    with pytest.raises(type(error)) as counted:
        opened(path).count()
    assert counted.value.where == error.where


@pytest.mark.parametrize("compression", [suffix for suffix in SUFFIXES if suffix])
@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_what_is_no_archive(written, fault, kind: str, compression: str) -> None:
    path = written(f"rows{kind}{compression}", b"this was never compressed at all, whatever it is called")
    error = fault(path)
    assert "the archive is damaged or cut off" in error.message
    assert str(path) in error.where


@pytest.mark.parametrize("compression", [suffix for suffix in SUFFIXES if suffix])
def test_archives_put_together_are_read_to_the_end(written, values, compression: str) -> None:
    compress = SUFFIXES[compression]
    path = written(f"rows.jsonl{compression}", compress(b'{"n": 1}\n') + compress(b'{"n": 2}\n'))
    assert values(path) == [{"n": 1}, {"n": 2}]


def test_flipped_bytes_are_no_rows(written, fault, long_lines: bytes) -> None:
    for compression in (".gz", ".xz", ".bz2"):
        damaged = bytearray(SUFFIXES[compression](long_lines[:300_000]))
        for index in range(len(damaged) // 2, len(damaged) // 2 + 50):
            damaged[index] ^= 0xFF
        assert fault(written(f"rows.jsonl{compression}", bytes(damaged)))


def test_zstandard_is_asked_for_by_name(written, opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = written("rows.jsonl.zst", SUFFIXES[".zst"](b"{}"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingEnvironmentError, match="zstandard is not installed") as caught:
        list(opened(path).rows())
    assert "luthier[data]" in caught.value.fix
