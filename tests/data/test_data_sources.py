"""Reading files: rows with their lines, and for every fault a message with file, line and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.data.sources import count_rows, locate, read_rows
from luthier.core.errors import DataError, ExitCode


def fault(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert caught.value.exit_code == ExitCode.DATA
    return caught.value


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_lines_of_jsonl_count_blank_lines(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": 1}\n\n  \r\n{"a": "x\u2028y"}\r\n{"a": 3}')
    assert [(row.line, row.value["a"]) for row in read_rows(path)] == [(1, 1), (4, "x\u2028y"), (5, 3)]
    assert [row.where for row in read_rows(path, limit=2)] == [f"{path}:1", f"{path}:4"]
    assert (count_rows(path), count_rows(path, 2)) == (3, 2)


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_rows_of_a_list_know_their_line(tmp_path: Path, indent: int | None) -> None:
    rows = [{"text": 'brackets ] and , "quotes"\n'}, {"deep": [{"x": [1, 2]}]}, {}]
    text = "\n\n" + json.dumps(rows, indent=indent) + "\n"
    path = written(tmp_path, "a.json", text)
    read = list(read_rows(path))
    assert [row.value for row in read] == rows
    lines = text.split("\n")
    assert all(lines[row.line - 1].lstrip(" [").startswith("{") for row in read)
    assert [row.line for row in read] == ([3, 3, 3] if indent is None else [4, 7, 17])
    assert (count_rows(path), count_rows(path, 2)) == (3, 2)


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    for name, content in (("a.json", b'[{"a": 1}]'), ("a.jsonl", b'{"a": 1}\n')):
        assert next(read_rows(written(tmp_path, name, b"\xef\xbb\xbf" + content))).value == {"a": 1}


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
        ("a.json", '[{"a": 1}]\n\nrest', 3, "Extra data after the list (column 1)"),
        ("a.json", '[{"a": 1},\n 7]', 2, "the row is a number"),
        ("a.json", '\n{"a": [1]}', 2, "does not hold a list"),
    ],
)
def test_bad_json_names_line_and_column(tmp_path: Path, name: str, content: str, line: int, words: str) -> None:
    path = written(tmp_path, name, content)
    error = fault(path)
    assert error.where == f"{path}:{line}"
    assert words in error.message
    assert error.fix


def test_json_lines_under_the_wrong_name_are_recognised(tmp_path: Path) -> None:
    assert "name the file .jsonl" in fault(written(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')).fix


@pytest.mark.parametrize(("name", "content"), [("a.json", ""), ("a.json", " \n[ ]\n"), ("a.jsonl", ""), ("a.jsonl", "\n\n")])
def test_empty_files(tmp_path: Path, name: str, content: str) -> None:
    error = fault(written(tmp_path, name, content))
    assert error.message == "holds no rows"
    assert error.where.endswith(name)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_not_utf8_names_line_and_byte(tmp_path: Path, name: str) -> None:
    lines = [b'{"a": "x"}', '{"a": "é"}'.encode("latin1")]
    content = b"[" + b",\n".join(lines) + b"]" if name == "a.json" else b"\n".join(lines)
    path = written(tmp_path, name, content)
    error = fault(path)
    assert error.where == f"{path}:2"
    assert "byte 0xe9 at byte 8 of the line" in error.message
    assert "iconv" in error.fix


def test_a_relative_path_means_the_current_folder_then_the_configuration_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (here, beside):
        folder.mkdir()
        (folder / "both.jsonl").write_text("{}")
    (beside / "one.jsonl").write_text("{}")
    monkeypatch.chdir(here)
    assert locate("both.jsonl", beside).resolve() == (here / "both.jsonl").resolve()
    assert locate("one.jsonl", beside) == beside / "one.jsonl"
    assert locate(str(beside / "both.jsonl"), here) == beside / "both.jsonl"
    with pytest.raises(DataError, match=r"did you mean .*beside/one.jsonl") as caught:
        locate("on.jsonl", beside)
    assert caught.value.where == "on.jsonl"
    with pytest.raises(DataError, match=r"was looked for in .*here and .*beside"):
        locate("zzzzzzzz.jsonl", beside)


def test_what_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(DataError, match="is a folder") as caught:
        locate(str(tmp_path))
    assert "rows.jsonl" in caught.value.fix
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"cannot read a \.csv"):
        locate(str(tmp_path / "rows.csv"))
