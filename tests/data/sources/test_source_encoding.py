"""Encodings: read as said, and for bytes that are not of the encoding the file, the line and the place in it."""

from __future__ import annotations

import json

import pytest

from luthier.core.data.sources import opening

TEXT = "Müßiggang, 東京, naïve"


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "UTF8"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_encodings(written, values, monkeypatch, name: str, encoding: str, chunk: int) -> None:
    monkeypatch.setattr(opening, "CHUNK", chunk)
    text = "Müßiggang 東京 ok"
    row = json.dumps({"text": text}, ensure_ascii=False)
    content = {"a.json": f"[{row}]", "a.jsonl": f"{row}\n{row}", "a.csv": f"text\n{text}\n", "a.txt": text}[name]
    path = written(name, content.encode(encoding))
    assert values(path, encoding=encoding)[0] == {"text": text}


def test_one_byte_encodings(written, values) -> None:
    assert values(written("a.txt", "10 € für".encode("cp1252")), encoding="cp1252") == [{"text": "10 € für"}]


@pytest.mark.parametrize("chunk", [1, 5, 1 << 18])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_not_utf8_names_line_and_place(written, fault, monkeypatch, name: str, chunk: int) -> None:
    monkeypatch.setattr(opening, "CHUNK", chunk)
    lines = [b'{"a": "\xc3\xa9"}', '{"a": "é"}'.encode("latin1")]
    contents = {"a.json": b"[" + b",\n".join(lines) + b"]", "a.jsonl": b"\n".join(lines)}
    path = written(name, contents.get(name, b'a\n{"a": "\xe9"}'))
    error = fault(path)
    assert error.where == f"{path}:2"
    assert error.message.startswith("is not UTF-8: 0xe9 at character 8 of the line")
    assert "encoding: latin-1" in error.fix


def test_rows_before_the_fault_are_given(written, opened) -> None:
    path = written("a.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": "\xff"}\n')
    assert [row.value["a"] for row in opened(path, rows=2).rows()] == [1, 2]


@pytest.mark.parametrize(
    ("encoding", "content", "words"),
    [
        ("utf-16", "ab\n".encode("utf-16") + b"\x00", "is not UTF-16"),
        ("utf-8", b"abc \xe6\x9d", "0xe6 0x9d at character 5"),
        ("cp1252", b"a\n\x81", "is not CP1252: 0x81 at character 1"),
        ("ascii", "é".encode(), "is not ASCII: 0xc3"),
        ("gb18030", b"a\x81\x20", "is not GB18030: 0x81"),
    ],
)
def test_wrong_bytes(written, fault, encoding: str, content: bytes, words: str) -> None:
    error = fault(written("a.txt", content), encoding=encoding)
    assert words in error.message


@pytest.mark.parametrize("encoding", ["utf-9", "hex", "rot13"])
def test_unknown_encodings(written, fault, encoding: str) -> None:
    path = written("a.txt", "x")
    error = fault(path, encoding=encoding)
    assert (error.message, error.where) == (f"there is no encoding {encoding!r}", str(path))
    assert "latin-1" in error.fix
