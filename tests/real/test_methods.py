"""The methods on the real SmolLM2-135M: 30 steps of each, and the held-out loss falls. Part of `make test-all`.

The table of what was measured is benchmarks/results/methods.json, written by `python -m luthier.benchmarks.methods`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.benchmarks.methods import LONG, ROWS, fell, measure

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("key", ["lora", "dora", "qlora", "freeze", "full", "galore"])
def test_the_held_out_loss_falls_in_thirty_steps(key: str, tmp_path: Path) -> None:
    row = measure(key, tmp_path)
    assert next(row for row in ROWS if row.key == key).steps == LONG == row["steps"] == 30
    assert fell(row), f"{row['held_out_before']} -> {row['held_out_after']}"
    assert row["trained_parameters"] > 0
    assert row["saved"] > 0
