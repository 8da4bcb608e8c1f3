"""CSV, TSV and plain text: cells under their names, with quotes and newlines in them, and the line each record begins on."""

from __future__ import annotations

import csv
import io

import pytest


def test_cells_are_strings_under_their_names(written, opened) -> None:
    content = 'question,answer\r\n"a, ""b""",1\r\n\r\n"two\r\nlines",\r\nlast,"x\n\ny"'
    path = written("a.csv", content)
    read = list(opened(path).rows())
    assert [row.value for row in read] == [
        {"question": 'a, "b"', "answer": "1"},
        {"question": "two\r\nlines", "answer": ""},
        {"question": "last", "answer": "x\n\ny"},
    ]
    assert [row.where for row in read] == [f"{path}:2", f"{path}:4", f"{path}:6"]
    assert opened(path).count() == 3
    assert [row.value["question"] for row in opened(path).rows(2)] == ["last"]


def test_the_csv_module_s_own_writing_is_read_back(written, values) -> None:
    rows = [{"a": 'x\t"y"', "b": "1\n2"}, {"a": "", "b": "ä, ö"}]
    for name, dialect in (("a.csv", "excel"), ("a.tsv", "excel-tab")):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ("a", "b"), dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
        assert values(written(name, text.getvalue())) == rows


def test_a_cell_may_be_a_whole_document(written, values) -> None:
    document = "long " * 100_000  # the csv module's own limit is 131,072 characters
    assert values(written("a.csv", f"text,n\n{document},1\n")) == [{"text": document, "n": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("a.csv", "a,b\n1,2\n3\n", 3, "has 1 cell, and the header 2"),
        ("a.csv", "a,b\n1,2,3\n", 2, "has 3 cells"),
        ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', 3, "bad CSV: unexpected end of data"),
        ("a.csv", 'a,b\n"1"x,2\n', 2, "bad CSV"),
        ("a.csv", "a,\n1,2\n", 1, "column 2 has no name"),
        ("a.csv", "\n\na,b,a\n1,2,3\n", 3, "two columns are called 'a'"),
        ("a.csv", "a;b\n1;2\n", 1, "separated by ';'"),
        ("a.csv", "a\tb\n1\t2\n", 1, "separated by '\\t'"),
        ("a.tsv", "a,b\n1,2\n", 1, "separated by ','"),
    ],
)
def test_faults_name_the_line(written, fault, name: str, content: str, line: int, words: str) -> None:
    path = written(name, content)
    error = fault(path)
    assert error.where == f"{path}:{line}"
    assert words in error.message


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.csv", "a,b\n"), ("a.tsv", "a\tb\n\n"), ("a.txt", "\n \n")])
def test_files_without_rows(written, fault, name: str, content: str) -> None:
    assert fault(written(name, content)).message == "holds no rows"


def test_a_row_of_text_is_a_line(written, opened) -> None:
    path = written("a.txt", "First article.\r\n\n  \n  indented\u2028one row\nlast")
    read = list(opened(path).rows())
    assert [row.value for row in read] == [{"text": "First article."}, {"text": "  indented\u2028one row"}, {"text": "last"}]
    assert [row.line for row in read] == [1, 4, 5]
    assert opened(path).count() == 3
    assert [row.line for row in opened(path).rows(1)] == [4, 5]


def test_the_type_can_be_said(written, values) -> None:
    path = written("rows.data", "a\tb\n1\t2\n")
    assert values(path, type="tsv") == [{"a": "1", "b": "2"}]
    assert values(path, type="text") == [{"text": "a\tb"}, {"text": "1\t2"}]
