"""Tokenising and packing alpaca rows, against LLaMA-Factory's preprocessing of the same file with as many workers.

    benchmarks/peers/llamafactory.sh build/llamafactory                      # its environment, once
    python -m luthier.benchmarks.data_speed --peer build/llamafactory        # 100,000 rows, A B A B ..., about ten minutes

Both begin with the file and end with labelled sequences of at most 2048 tokens, several rows in each, kept on disk; imports
and loading the tokenizer are not counted, filling a cache that was empty is. The rows are LLaMA-Factory's alpaca demo,
its answers' sentences mixed anew so that no two rows are equal, with two words in each that occur nowhere else, because a
real set of this size has as many rare words. Token counts of both are in the result: nobody is faster by doing less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from luthier.benchmarks.machine import describe_machine

RESULT: Final = Path(__file__).parent / "results" / "data_speed.json"
PEER: Final = Path(__file__).parent / "peers" / "llamafactory_data.py"
LENGTH: Final = 2048
MARK: Final = "RESULT "


def write_rows(demo: Path, target: Path, count: int) -> None:
    """`count` rows made of those of `demo`, the same ones each time."""
    rows = json.loads(demo.read_text(encoding="utf-8"))
    draw = random.Random(0)  # noqa: S311
    sentences = [re.split(r"(?<=[.!?])\s+", row["output"]) for row in rows]
    made = []
    for number in range(count):
        row = rows[number % len(rows)]
        # As many sentences as the row's own answer has, from it and from others in turn.
        own = sentences[number % len(rows)]
        answer = [draw.choice(own if index % 2 else draw.choice(sentences)) for index in range(len(own))]
        rare = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(2)]
        made.append({**row, "instruction": f"{row['instruction']} ({rare[0]})", "output": " ".join([*answer, rare[1]])})
    target.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")


def prepare_rows(job: dict[str, Any]) -> dict[str, Any]:
    """Ours, in this process."""
    os.environ["LUTHIER_CACHE"] = job["cache"]
    from luthier.core.config import parse_config
    from luthier.core.data import BatchSchedule, prepare
    from luthier.core.loading import load_tokenizer
    from luthier.registry.catalog import discover
    from luthier.registry.models import resolve_model

    data = {"train": [job["rows"]], "max_length": LENGTH, "packing": True, "workers": job["workers"]}
    config = parse_config({"model": job["model"], "data": data})
    catalog = discover()
    tokenizer = load_tokenizer(resolve_model(job["model"]), print)
    begin = time.perf_counter()
    prepared = prepare(config, catalog.formats, tokenizer, kind="conversation")
    schedule = BatchSchedule(prepared.train.lengths, batch_tokens=LENGTH, packing=True)
    seconds = time.perf_counter() - begin
    report = prepared.report
    return {
        "seconds": seconds,
        "sequences": len(schedule),
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "dropped": sum(report.dropped.values()),
    }


def run(command: list[str]) -> dict[str, Any]:
    """The result that a process of its own prints; its last words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise SystemExit(f"{command[1]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peer", type=Path, help="environment made by peers/llamafactory.sh")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        print(MARK + json.dumps(prepare_rows(json.loads(asked.job))))
        return
    if asked.peer is None:
        parser.error("give --peer, the environment that benchmarks/peers/llamafactory.sh made")
    from luthier.registry.models import resolve_model

    runs: dict[str, list[dict[str, Any]]] = {"llamafactory": [], "luthier": []}
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "rows.json"
        write_rows(asked.peer / "data" / "alpaca_en_demo.json", rows, asked.rows)
        model = resolve_model(asked.model).path
        for number in range(asked.rounds):
            for who in ("llamafactory", "luthier"):
                with tempfile.TemporaryDirectory() as cache:
                    job = {"rows": str(rows), "model": model, "workers": asked.workers, "length": LENGTH, "cache": cache}
                    ours = [sys.executable, "-m", "luthier.benchmarks.data_speed", "--job", json.dumps(job)]
                    theirs = [str(asked.peer / "bin" / "python"), str(PEER), json.dumps(job)]
                    found = run(ours if who == "luthier" else theirs)
                runs[who].append(found)
                print(f"round {number + 1}: {who}: {found}", flush=True)
    medians = {who: statistics.median(one["seconds"] for one in found) for who, found in runs.items()}
    ratio = medians["llamafactory"] / medians["luthier"]
    result = {
        "machine": describe_machine(),
        "peer": "llamafactory 0.9.5, transformers 5.6.0, datasets 4.0.0 (benchmarks/peers/llamafactory.sh)",
        "rows": asked.rows,
        "workers": asked.workers,
        "sequence_tokens": LENGTH,
        "runs": runs,
        "median_seconds": medians,
        "rows_per_second": {who: asked.rows / seconds for who, seconds in medians.items()},
        "times_as_fast": ratio,
    }
    asked.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{ratio:.2f} times as fast; written to {asked.result}")


if __name__ == "__main__":
    main()
