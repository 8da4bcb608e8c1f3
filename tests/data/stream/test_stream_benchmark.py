"""The benchmark of streaming, on a file small enough for a test: what it claims about the large one is checked on this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from luthier.benchmarks.data_stream import in_bytes


def test_a_small_run_streams_is_killed_and_goes_on(tiny_folder: Any, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    words = ["--size", "3MB", "--window", "300", "--model", str(tiny_folder()), "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "luthier.benchmarks.data_stream", *words, "--result", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["file"]["bytes"] >= 3_000_000
    assert found["every_row_once"] is True
    assert found["straight"]["rows"] == found["file"]["rows"]
    assert found["straight"]["windows"] == -(-found["file"]["rows"] // 300)
    assert found["resumed_exactly"] is True
    assert found["resumed"]["compared"] > 100
    assert found["peak_resident_gib"] < 1
    # Nothing is left but the result.
    assert not list(tmp_path.glob("*/rows.jsonl"))


def test_sizes_are_decimal() -> None:
    assert [in_bytes(text) for text in ("5GB", "1.5MB", "20kB")] == [5_000_000_000, 1_500_000, 20_000]
