"""JSON and JSON Lines: rows with their lines, and for every fault a message with file, line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_lines_of_jsonl_count_blank_lines(written, opened) -> None:
    path = written("a.jsonl", '{"a": 1}\n\n  \r\n{"a": "x\u2028y"}\r\n{"a": 3}')
    source = opened(path)
    assert [(row.line, row.value["a"]) for row in source.rows()] == [(1, 1), (4, "x\u2028y"), (5, 3)]
    assert [row.where for row in opened(path, rows=2).rows()] == [f"{path}:1", f"{path}:4"]
    assert (source.count(), opened(path, rows=2).count(), source.name) == (3, 2, str(path))


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_rows_of_a_list_know_their_line(written, opened, indent: int | None) -> None:
    rows = [{"text": 'brackets ] and , "quotes"\n'}, {"deep": [{"x": [1, 2]}]}, {}]
    text = "\n\n" + json.dumps(rows, indent=indent) + "\n"
    source = opened(written("a.json", text))
    read = list(source.rows())
    assert [row.value for row in read] == rows
    lines = text.split("\n")
    assert all(lines[row.line - 1].lstrip(" [").startswith("{") for row in read)
    assert [row.line for row in read] == ([3, 3, 3] if indent is None else [4, 7, 17])
    assert source.count() == 3


def test_byte_order_mark_is_no_fault(written, values) -> None:
    for name, content in (("a.json", b'[{"a": 1}]'), ("a.jsonl", b'{"a": 1}\n')):
        assert values(written(name, b"\xef\xbb\xbf" + content)) == [{"a": 1}]


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 1,}\n', 2, "column 9"),
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', 3, "bad JSON"),
        ("a.jsonl", '{\n  "a": 1\n}\n', 1, "bad JSON"),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', 1, "Extra data (column 10)"),
        ("a.jsonl", '{"a": 1}\n[1]\n', 2, "the row is a list, not an object"),
        ("a.jsonl", '{"a": 1}\n"text"\n', 2, "the row is a string"),
        ("a.jsonl", "null\n", 1, "the row is null"),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "\n", 1, "bad JSON: nested too deeply"),
        ("a.json", '[\n{"a": 1},\n{"a": 1,}\n]', 3, "column 9"),
        ("a.json", '[\n{"a": 1}\n{"a": 2}]', 3, "Expecting ',' or ']' (column 1)"),
        ("a.json", '[{"a": 1},\n]', 2, "bad JSON"),
        ("a.json", '[{"a": 1}', 1, "Expecting ',' or ']'"),
        ("a.json", "[", 1, "bad JSON"),
        ("a.json", '[{"a": 1}]\n\nrest', 3, "Extra data after the list (column 1)"),
        ("a.json", '[{"a": 1},\n 7]', 2, "the row is a number"),
        ("a.json", '\n{"a": [1]}', 2, "does not hold a list"),
        ("a.json", '[{"a":\n"no end]', 2, "Unterminated string"),
        ("a.json", "[" * 100_000, 1, "nested too deeply"),
        ("a.json", '[{"a": 1},\n{"a": ' + "9" * 5000 + "}]", 2, "bad JSON: Exceeds the limit"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", 1, "bad JSON: Exceeds the limit"),
    ],
)
def test_bad_json_names_line_and_column(written, fault, name: str, content: str, line: int, words: str) -> None:
    path = written(name, content)
    error = fault(path)
    assert error.where == f"{path}:{line}"
    assert words in error.message


def test_what_stands_before_a_fault_is_read(written, opened) -> None:
    for name, content in (("a.json", '[{"a": 1}, {"a": 2},\n{]'), ("a.jsonl", '{"a": 1}\n{"a": 2}\n{')):
        assert len(list(opened(written(name, content), rows=2).rows())) == 2


def test_json_lines_under_the_wrong_name_are_recognised(written, fault, values) -> None:
    path = written("a.json", '{"a": 1}\n{"a": 2}\n')
    assert "say `type: jsonl`" in fault(path).fix
    assert values(path, type="jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(("name", "content"), [("a.json", ""), ("a.json", " \n[ ]\n"), ("a.jsonl", ""), ("a.jsonl", "\n\n")])
def test_empty_files(written, fault, name: str, content: str) -> None:
    error = fault(written(name, content))
    assert error.message == "holds no rows"
    assert error.where.endswith(name)


def test_what_is_no_data_file(written, fault, tmp_path: Path) -> None:
    error = fault(written("rows.xlsx", "a"))
    assert "how a .xlsx is written" in error.message
    assert "type: jsonl" in error.fix
    assert ".parquet" in error.fix
    written("one.jsonl", "{}")
    assert fault(tmp_path / "on.jsonl").fix == f"did you mean {tmp_path / 'one.jsonl'}?"


def test_an_unreadable_file(written, opened, fault, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("a.jsonl", "{}")

    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    error = fault(path)
    assert (error.message, error.where) == ("cannot be read: Permission denied", str(path))
