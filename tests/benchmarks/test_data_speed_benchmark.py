"""The benchmark against LLaMA-Factory: its rows, and our side of it, on a handful of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.benchmarks import data_speed

DEMO = [
    {"instruction": f"Say {n}.", "input": "", "output": f"First {n}. Second {n}! Third {n}? {'Word ' * n}"}
    for n in range(1, 6)
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    demo = tmp_path / "demo.json"
    demo.write_text(json.dumps(DEMO), encoding="utf-8")
    target = tmp_path / "rows.json"
    data_speed.write_rows(demo, target, 40)
    return target


def test_rows_are_the_same_each_time_and_no_two_are_equal(rows: Path, tmp_path: Path) -> None:
    made = json.loads(rows.read_text())
    assert len({json.dumps(row) for row in made}) == len(made) == 40
    again = tmp_path / "again.json"
    data_speed.write_rows(tmp_path / "demo.json", again, 40)
    assert again.read_bytes() == rows.read_bytes()
    known = {word for row in DEMO for word in row["output"].split()}
    for row in made:
        *answer, rare = row["output"].split()
        assert set(answer) <= known
        assert rare not in known


def test_our_side_counts_what_it_made(
    rows: Path, tmp_path: Path, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", "")  # put back afterwards: the benchmark sets it for its process
    job = {"rows": str(rows), "model": str(tiny_folder("llama")), "workers": 1, "cache": str(tmp_path / "cache")}
    found = data_speed.prepare_rows(job)
    assert found["dropped"] == 0
    assert 0 < found["trained_tokens"] < found["tokens"] <= found["sequences"] * data_speed.LENGTH
    assert list((tmp_path / "cache" / "data").iterdir()), "filling the cache is part of what is measured"
