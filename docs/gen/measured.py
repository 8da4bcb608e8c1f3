"""What `python -m luthier.benchmarks.methods` measured: `measured NAME`, and `measured all` for the index of methods."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from blocks import ROOT, table

RESULT = ROOT / "benchmarks" / "results" / "methods.json"
MIB = 2**20
EVERYWHERE = ("lora", "full")  # the rows that stand for a method which takes part in every run


@cache
def results() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return document


def measured(page: Path, words: list[str]) -> str:
    """The rows of one method, or all; raises KeyError for a method that was not measured."""
    (name,) = words
    document = results()
    rows = document["rows"]
    keys = [key for key, row in rows.items() if name in ("all", row["method"])]
    keys = keys or [key for key in EVERYWHERE if name in (rows[key].get("attention"), rows[key].get("stage"))]
    if not keys:
        raise KeyError(f"{page}: {RESULT.name} has no row of {name}")
    cells = [_cells(key, rows[key]) for key in keys]
    headings = ["run", "trained", "peak", "predicted", "optimizer state", "predicted", "saved", "held-out loss"]
    machine = document["machine"]
    note = (
        f"SmolLM2-135M, {document['precision']}, micro-batches of {document['batch_tokens']} tokens, "
        f"{machine['cores']} cores "
        f"of {machine['cpu']}. Sizes in MiB; the peak is resident memory, the interpreter and its libraries included, and "
        f"predicted are tensors only."
    )
    return f"{table(headings, cells)}\n\n{note}"


def _cells(key: str, row: dict[str, Any]) -> list[str]:
    sizes = ("peak_memory", "predicted_peak", "optimizer_state", "predicted_state", "saved")
    loss = f"{row['held_out_before']:.2f} -> {row['held_out_after']:.2f} in {row['steps']} steps"
    return [f"`{key}`", f"{row['trained_parameters']:,}", *(f"{row[size] / MIB:,.1f}" for size in sizes), loss]
