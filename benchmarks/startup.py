"""How long the command line takes before anything trains.

    python -m luthier.benchmarks.startup        # writes benchmarks/results/startup.json

`luthier --help` must need less than 0.3 s of CPU time, `luthier plan` of a 7B llama configuration less than 6 s. Each is the
best of five runs in fresh processes: CPU time (user and system, children included) and wall time beside it. The dtype
probe's result is in the cache after the first run, as it is for a user.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from luthier.benchmarks.machine import describe_machine

RESULT: Final = Path(__file__).parent / "results" / "startup.json"
LIMITS: Final = {"help": 0.3, "plan": 6.0}


def measure(words: Sequence[str], runs: int, environment: dict[str, str]) -> dict[str, Any]:
    """Best CPU and wall seconds of `python -m luthier WORDS` in fresh processes."""
    cpu, wall = [], []
    for _ in range(runs):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "luthier", *words], check=True, capture_output=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - started)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"cpu_seconds": round(min(cpu), 3), "wall_seconds": round(min(wall), 3), "runs": runs}


def write_llama(folder: Path) -> Path:
    """A configuration file over a llama-7B config.json without weights; returns its path."""
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(folder / "llama")
    row = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    path = folder / "config.yaml"
    path.write_text(f"model: {folder / 'llama'}\ndata: {{train: [rows.jsonl]}}\nstage: sft\nadapter: lora\n")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        environment = os.environ | {"LUTHIER_CACHE": str(Path(name) / "cache"), "HF_HUB_OFFLINE": "1"}
        config = write_llama(Path(name))
        measured = {
            "help": measure(["--help"], arguments.runs, environment),
            "plan": measure(["plan", str(config)], arguments.runs, environment),
        }
    for verb, numbers in measured.items():
        numbers["limit_cpu_seconds"] = LIMITS[verb]
        numbers["within"] = numbers["cpu_seconds"] < LIMITS[verb]
        print(f"luthier {verb}: {numbers['cpu_seconds']} s CPU, {numbers['wall_seconds']} s wall (limit {LIMITS[verb]} s)")
    arguments.result.parent.mkdir(exist_ok=True)
    arguments.result.write_text(json.dumps({"machine": describe_machine(), **measured}, indent=2) + "\n")
    return 0 if all(numbers["within"] for numbers in measured.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
