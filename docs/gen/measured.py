"""What the benchmarks measured, from their committed results.

`measured NAME`, `measured all`   `python -m luthier.benchmarks.methods`: a method, or all for the index of methods
`speed`                           `python -m luthier.benchmarks.data_speed`
`stream`                          `python -m luthier.benchmarks.data_stream`
`ppo_memory`                      `python -m luthier.benchmarks.ppo_memory`
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from blocks import ROOT, table

RESULTS = ROOT / "benchmarks" / "results"
RESULT = RESULTS / "methods.json"
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
    what = "" if row["held_out"] == "loss" else f"{row['held_out']} "
    change = f"{what}{row['held_out_before']:.2f} -> {row['held_out_after']:.2f} in {row['steps']} steps"
    return [f"`{key}`", f"{row['trained_parameters']:,}", *(f"{row[size] / MIB:,.1f}" for size in sizes), change]


def speed(page: Path, words: list[str]) -> str:
    """Tokenising and packing, beside LLaMA-Factory: medians over the rounds."""
    found = json.loads((RESULTS / "data_speed.json").read_text(encoding="utf-8"))
    rows = []
    for who, runs in found["runs"].items():
        seconds, last = found["median_seconds"][who], runs[-1]
        rate = f"{found['rows_per_second'][who]:,.0f}"
        rows.append(
            [who, f"{seconds:.1f} s", rate, f"{last['tokens']:,}", f"{last['trained_tokens']:,}", f"{last['sequences']:,}"]
        )
    headings = ["", "time", "rows/s", "tokens", "learned", "sequences"]
    machine = found["machine"]
    note = (
        f"{found['rows']:,} alpaca rows to labelled sequences of at most {found['sequence_tokens']:,} tokens, on disk; "
        f"{found['workers']} workers each, {len(runs)} rounds in turn, medians: Luthier is "
        f"{found['times_as_fast']:.2f} times as fast. {machine['cores']} cores of {machine['cpu']}; {found['peer']}."
    )
    return f"{table(headings, rows)}\n\n{note}"


def stream(page: Path, words: list[str]) -> str:
    """A file larger than the memory, read in a stream, and a reader that was killed."""
    found = json.loads((RESULTS / "data_stream.json").read_text(encoding="utf-8"))
    straight, resumed = found["straight"], found["resumed"]
    rows = [
        ["file", f"{found['file']['bytes'] / 1e9:.1f} GB, {found['file']['rows']:,} rows"],
        [
            "tokens",
            f"{straight['tokens']:,}, packed into {straight['micro_batches']:,} sequences, "
            f"{straight['packing_efficiency']:.1%} full",
        ],
        ["peak resident memory", f"{found['peak_resident_gib']:.2f} GiB, interpreter and libraries included"],
        ["speed", f"{found['megabytes_per_cpu_second']:.1f} MB for each second of a core"],
        [
            "killed after",
            f"{found['killed_after']:,} micro-batches; {resumed['seconds_to_the_window']:.1f} s until it went on",
        ],
        ["the next micro-batches", f"{resumed['equal']:,} of {resumed['compared']:,} equal to those of the straight pass"],
    ]
    machine = found["machine"]
    return f"{table(['', ''], rows)}\n\nOne process on {machine['cores']} cores of {machine['cpu']}, other work beside it."


MEMORY_ROWS = {
    "sft": "`sft`",
    "ppo": "`ppo`, reward by a rule",
    "ppo-value": "`ppo`, reward by a rule, `value_adapter: true`",
    "ppo-reward": "`ppo`, `value_adapter: true`, a reward run on the same base",
    "four": "the same roles as four models",
}


def ppo_memory(page: Path, words: list[str]) -> str:
    """Peak memory of PPO's roles on one base, against a supervised run and against four models."""
    found = json.loads((RESULTS / "ppo_memory.json").read_text(encoding="utf-8"))
    rows = []
    for key, row in found["rows"].items():
        ratio = found["ratios"][key]
        sizes = [f"{row[name] / MIB:,.0f}" for name in ("peak", "tensors")]
        rows.append([MEMORY_ROWS[key], *sizes, f"{ratio['peak']:.2f}", f"{ratio['tensors']:.2f}", f"{row['parameters']:,}"])
    headings = ["run", "peak", "without libraries", "peak, of `sft`", "without libraries, of `sft`", "parameters"]
    machine = found["machine"]
    note = (
        f"SmolLM2-135M, {found['precision']}, LoRA, micro-batches of {found['batch_tokens']:,} tokens, answers of "
        f"{found['answer_tokens']} tokens, {machine['cores']} cores of {machine['cpu']}. MiB of resident memory, freed "
        "memory given back at once; without libraries is less what the process held before anything was loaded. Parameters "
        "are those of the run's own model."
    )
    return f"{table(headings, rows)}\n\n{note}"
