"""Fingerprints: the same for the same content wherever it lies, another one for whatever changes what is read."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from luthier.core.config.schema import SourceConfig
from luthier.core.data.sources import open_rows

CONTENT = '{"text": "a"}\n{"text": "b"}\n'


def of(path: Path | None = None, **keys: object) -> str:
    return open_rows(SourceConfig(path=None if path is None else str(path), **keys)).fingerprint()  # type: ignore[arg-type]


def test_name_and_date_do_not_count(written, monkeypatch) -> None:
    path = written("a.jsonl", CONTENT)
    first = of(path)
    os.utime(path, (1, 1))
    assert of(path) == first
    assert of(written("other/b.jsonl", CONTENT)) == first
    assert of(path.rename(path.with_name("c.jsonl"))) == first
    assert int(first, 16) > 0


def test_content_and_reading_count(written, tmp_path: Path) -> None:
    path = written("a.jsonl", CONTENT)
    found = {
        "as it is": of(path),
        "a byte more": of(written("b.jsonl", CONTENT + "\n")),
        "one character": of(written("c.jsonl", CONTENT.replace("b", "c"))),
        "rows": of(path, rows=1),
        "type": of(path, type="text"),
        "encoding": of(path, encoding="latin-1"),
        "compressed": of(written("d.jsonl.gz", gzip.compress(CONTENT.encode(), mtime=0))),
    }
    assert len(set(found.values())) == len(found), found
    # What is done with the rows afterwards is not the source's.
    assert of(path, weight=2.0, sample=10, columns={"text": "b"}) == found["as it is"]


def test_files_of_a_folder_count_in_their_order(written, tmp_path: Path) -> None:
    for name, content in (
        ("one/a.jsonl", "{}"),
        ("one/b.jsonl", '{"a": 1}'),
        ("two/a.jsonl", '{"a": 1}'),
        ("two/b.jsonl", "{}"),
    ):
        written(name, content)
    written("three/x.jsonl", "{}")
    written("three/y.jsonl", '{"a": 1}')
    one, two, three = (of(tmp_path / name) for name in ("one", "two", "three"))
    assert one == three == of(tmp_path / "one" / "*.jsonl") != two


def test_rows_in_the_configuration(opened, values) -> None:
    rows = ({"messages": [{"role": "user", "content": "ä"}]}, {"messages": []}, {"n": 1})
    source = open_rows(SourceConfig(inline=rows))  # type: ignore[arg-type]
    read = list(source.rows())
    assert [row.value for row in read] == list(rows)
    assert [row.where for row in read] == ["inline, row 1", "inline, row 2", "inline, row 3"]
    assert [row.line for row in source.rows(2)] == [3]
    assert (source.count(), opened(inline=rows, rows=2).count()) == (3, 2)
    assert values(inline=rows, rows=1) == [rows[0]]
    assert of(inline=rows) == of(inline=rows) != of(inline=rows[:2])
    assert of(inline=({"a": "\ud800"},))


def test_rows_from_a_file_are_plain_lists_and_dicts(opened) -> None:
    from luthier.core.frozen import freeze

    source = opened(inline=(freeze({"messages": [{"role": "user"}]}),))
    value = next(source.rows()).value
    assert type(value["messages"]) is list
    assert type(value["messages"][0]) is dict
