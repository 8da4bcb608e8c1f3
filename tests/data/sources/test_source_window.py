"""The reader of a .json list: the same rows as json.load gives, wherever its window of text ends, in little memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.config.schema import SourceConfig
from luthier.core.data.sources import open_rows, opening
from luthier.core.errors import DataError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
objects = st.lists(st.dictionaries(st.text(max_size=5), anything, max_size=4), min_size=1, max_size=6)
blank = st.text(alphabet=" \t\r\n", max_size=40)


def spaced(value: object, space, ascii_only: bool) -> str:
    """JSON with random white space wherever it may stand."""
    if isinstance(value, dict):
        pairs = [
            f"{space()}{spaced(key, space, ascii_only)}{space()}:{space()}{spaced(item, space, ascii_only)}{space()}"
            for key, item in value.items()
        ]
        return "{" + (",".join(pairs) or space()) + "}"
    if isinstance(value, list):
        return "[" + (",".join(f"{space()}{spaced(item, space, ascii_only)}{space()}" for item in value) or space()) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=objects, data=st.data(), chunk=st.integers(1, 60), ascii_only=st.booleans(), start=st.integers(0, 7))
def test_any_list_read_through_any_window(
    tmp_path: Path, rows: list[dict[str, object]], data: st.DataObject, chunk: int, ascii_only: bool, start: int
) -> None:
    spaces = data.draw(st.lists(blank, min_size=1, max_size=5))
    drawn = random.Random(chunk)
    text = drawn.choice(spaces) + spaced(rows, lambda: drawn.choice(spaces), ascii_only) + drawn.choice(spaces)
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode("utf-8"))
    source = open_rows(SourceConfig(path=str(path)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "CHUNK", chunk)
        read = list(source.rows())
        assert [row.value for row in source.rows(start)] == rows[start:]
    assert [row.value for row in read] == json.loads(text)
    # The line of a row is that of its brace: the part before it parses as a list that was not closed.
    positions = _beginnings(text)
    assert [row.line for row in read] == [1 + text.count("\n", 0, position) for position in positions]


def _beginnings(text: str) -> list[int]:
    """Where the objects of the list begin, from a count of brackets outside strings."""
    found, depth, inside, escaped = [], 0, False, False
    for index, mark in enumerate(text):
        if inside:
            escaped, inside = mark == "\\" and not escaped, escaped or mark != '"'
        elif mark == '"':
            inside = True
        elif mark in "[{":
            if depth == 1:
                found.append(index)
            depth += 1
        elif mark in "]}":
            depth -= 1
    return found


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 64])
def test_faults_are_placed_alike_in_every_window(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "CHUNK", chunk)
    path = tmp_path / "rows.json"
    for text in (
        '[{"a": 1},\n  {"bc": tru, "d": [1, 2, 3, 4, 5, 6, 7, 8]}, {}]',
        '[{"a": 1},\n  {"bc": "x\\q", "d": "a long text that follows it"}]',
        '[{"a": 1},\n  {"bc": 1 "d": "a long text that follows it"}]',
    ):
        path.write_text(text)
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(text)
        with pytest.raises(DataError) as caught:
            list(open_rows(SourceConfig(path=str(path))).rows())
        assert caught.value.where == f"{path}:{expected.value.lineno}"
        assert caught.value.message == f"bad JSON: {expected.value.msg} (column {expected.value.colno})"


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    row = json.dumps({"text": "é" * 1000, "n": [1, 2, 3]}, ensure_ascii=False)
    path = tmp_path / name
    with path.open("w", encoding="utf-8") as file:
        if name.endswith("l"):
            file.writelines(f"{row}\n" for _ in range(10_000))
        else:
            file.write("[" + ",\n".join([row] * 10_000) + "]")
    assert path.stat().st_size > 20_000_000
    source = open_rows(SourceConfig(path=str(path)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in source.rows()) == 10_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert source.count() == 10_000


def test_a_row_larger_than_the_window(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [{"text": "x" * 3_000_000}, {"text": "y"}]
    path.write_text(json.dumps(rows))
    assert [row.value for row in open_rows(SourceConfig(path=str(path))).rows()] == rows
