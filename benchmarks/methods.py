"""Every method on the real SmolLM2-135M: does the held-out loss fall, how quickly does it run, how much memory does it take.

    python -m luthier.benchmarks.methods                 # every row, each in a fresh process
    python -m luthier.benchmarks.methods lora dora qlora # some rows; the others of the result file are kept

The task is the demo's (requests to JSON commands). Held-out loss "before" is that of a run whose rate is too small to move a
weight, on the same storage of the base weights. Peak memory is resident memory of the process (interpreter and libraries
included) on a CPU, torch's allocator on CUDA. Optimizer state is what the checkpoint holds of it, saved what the run leaves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from luthier.benchmarks.machine import describe_machine
from luthier.benchmarks.task_rows import as_kind

RESULT: Final = Path(__file__).parent / "results" / "methods.json"
MODEL: Final = "smollm2-135m"
LONG, SHORT = 30, 5
JSON: Final = [{"use": "json_valid"}]
STILL: Final = 1e-12  # a learning rate that moves nothing


@dataclass(frozen=True)
class Row:
    """One row of the table: a method and the configuration that shows it. `steps` is LONG where the loss must fall."""

    method: str
    adapter: Any = "lora"
    optimizer: Any = field(default_factory=lambda: {"use": "adamw", "lr": 1e-3})
    patches: tuple[Any, ...] = ()
    attention: str = "auto"
    stage: Any = "sft"
    kind: str = "conversation"
    steps: int = SHORT
    name: str = ""

    @property
    def key(self) -> str:
        return self.name or self.method


def full(optimizer: str, lr: float, **options: Any) -> dict[str, Any]:
    """An optimizer's row with whole weights training."""
    return {"adapter": "full", "optimizer": {"use": optimizer, "lr": lr, **options}}


ROWS: Final = (
    Row("lora", steps=LONG),
    Row("dora", adapter="dora", steps=LONG),
    Row("qlora", adapter="qlora", patches=("nf4",), steps=LONG),
    Row("freeze", adapter={"use": "freeze", "layers": 4}, optimizer={"use": "adamw", "lr": 3e-4}, steps=LONG),
    Row("full", **full("adamw", 5e-5), steps=LONG),
    Row("galore", **full("galore", 1e-3, rank=64, refresh=10), steps=LONG),
    Row("galore", **full("galore", 1e-3, rank=64, refresh=10, layerwise=True), name="galore-layerwise"),
    Row("oft", adapter="oft"),
    Row("llama_pro", adapter={"use": "llama_pro", "blocks": 2}, optimizer={"use": "adamw", "lr": 3e-4}),
    Row("peft", adapter={"use": "peft", "tuner": "ia3"}, optimizer={"use": "adamw", "lr": 1e-2}, name="peft-ia3"),
    Row("nf4", patches=("nf4",)),
    Row("fp4", patches=("fp4",)),
    Row("int8", patches=("int8",)),
    Row("adamw", **full("adamw", 5e-5)),
    Row("adamw_8bit", **full("adamw_8bit", 5e-5)),
    Row("adafactor", **full("adafactor", 1e-4)),
    Row("lion", **full("lion", 1e-5)),
    Row("sgd", **full("sgd", 1e-2)),
    Row("muon", **full("muon", 3e-4)),
    Row("adam_mini", **full("adam_mini", 5e-5)),
    Row("apollo", **full("apollo", 3e-4)),
    Row("badam", **full("badam", 1e-4, switch_every=2)),
    Row("lora_plus", optimizer={"use": "lora_plus", "lr": 2e-4}),
    Row("lora_fa", optimizer={"use": "lora_fa", "lr": 1e-3}),
    Row("eager", attention="eager"),
    Row("pt", stage="pt", kind="text"),
    Row("rm", stage="rm", kind="preference"),
    Row("dpo", stage="dpo", kind="preference"),
    Row("orpo", stage="orpo", kind="preference"),
    Row("cpo", stage="cpo", kind="preference"),
    Row("simpo", stage="simpo", kind="preference"),
    Row("kto", stage="kto", kind="unpaired"),
    Row("grpo", stage={"use": "grpo", "reward": JSON, "max_new_tokens": 32}, kind="prompt"),
    Row("rloo", stage={"use": "rloo", "reward": JSON, "max_new_tokens": 32}, kind="prompt"),
    Row("ppo", stage={"use": "ppo", "reward": JSON, "max_new_tokens": 32}, kind="prompt"),
    Row("checkpointing", patches=("checkpointing",)),
    Row("neftune", patches=("neftune",)),
    Row("rope_scaling", patches=({"use": "rope_scaling", "type": "yarn", "factor": 2.0},)),
    Row(
        "new_tokens",
        adapter={"use": "freeze", "layers": 2, "embeddings": True},
        optimizer={"use": "adamw", "lr": 3e-4},
        patches=({"use": "new_tokens", "tokens": ['{"intent":"', '","']},),
    ),
)


def configuration(row: Row, folder: Path, *, still: bool = False) -> dict[str, Any]:
    """The configuration of a row, as a user would write it; `still` is the one that measures the start."""
    from luthier.demo.task import write_task

    train, held_out = write_task(folder)
    train, held_out = as_kind(train, row.kind), as_kind(held_out, row.kind)
    optimizer = {"use": "adamw", "lr": STILL} if still else row.optimizer | {"schedule": "constant", "warmup": 0}
    steps = 1 if still else row.steps
    return {
        "model": MODEL,
        "data": {"train": [{"path": str(train)}], "eval": [{"path": str(held_out), "rows": 24}], "max_length": 256},
        "stage": row.stage,
        "adapter": "lora" if still and row.adapter == "qlora" else row.adapter,
        "optimizer": optimizer,
        "patches": [] if row.adapter == "qlora" and not still else list(row.patches),
        "attention": row.attention,
        "precision": "fp32",
        "train": {"max_steps": steps, "batch_tokens": 256, "save_every": steps},
        "output": str(folder / ("still" if still else row.key)),
    }


def measure(key: str, folder: Path) -> dict[str, Any]:
    """Run one row in this process."""
    import luthier

    row = next(row for row in ROWS if row.key == key)
    # The run that is measured comes first: memory that another left behind would count as its own.
    results = luthier.train(configuration(row, folder))
    start = luthier.train(configuration(row, folder, still=True))
    # Stages that learn from prompts have no loss of held-out rows: their answers are judged.
    metric = "loss" if "eval_loss" in results else "reward"
    output = Path(results["output"])
    checkpoint = output / f"checkpoint-{row.steps}"
    weights = [path for path in output.iterdir() if path.suffix == ".safetensors"]
    state = checkpoint / "optimizer.safetensors"
    return {
        "method": row.method,
        "adapter": results["methods"]["adapter"],
        "optimizer": results["methods"]["optimizer"],
        "attention": results["methods"]["attention"],
        "stage": results["stage"],
        "patches": results["methods"]["patches"],
        "steps": results["steps"],
        "held_out": metric,
        "held_out_before": start[f"eval_{metric}"],
        "held_out_after": results[f"eval_{metric}"],
        "tokens_per_second": results["tokens_per_second"],
        "peak_memory": results["memory"]["measured_peak"],
        "predicted_peak": results["memory"]["predicted"]["peak"],
        "optimizer_state": state.stat().st_size if state.exists() else 0,
        "predicted_state": results["memory"]["predicted"]["optimizer"],
        "trained_parameters": results["trained_parameters"],
        "saved": sum(path.stat().st_size for path in weights),
    }


def in_fresh_process(key: str) -> dict[str, Any]:
    """One row's measurements, or its error."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "luthier.benchmarks.methods", "--measure", key, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            method = next(row.method for row in ROWS if row.key == key)
            return {"method": method, "error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        found: dict[str, Any] = json.loads((Path(folder) / "row.json").read_text())
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="keys of rows; all by default")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        (arguments.folder / "row.json").write_text(json.dumps(measure(arguments.measure, arguments.folder)))
        return 0
    keys = arguments.rows or [row.key for row in ROWS]
    unknown = set(keys) - {row.key for row in ROWS}
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are: {', '.join(row.key for row in ROWS)}")
    before = json.loads(arguments.result.read_text())["rows"] if arguments.rows and arguments.result.exists() else {}
    rows = dict(before)
    for key in keys:
        rows[key] = in_fresh_process(key)
        print(f"{key:<18} {line(rows[key])}", flush=True)
        ordered = {row.key: rows[row.key] for row in ROWS if row.key in rows}
        document = {"machine": describe_machine(), "model": MODEL, "batch_tokens": 256, "precision": "fp32", "rows": ordered}
        arguments.result.parent.mkdir(exist_ok=True)
        arguments.result.write_text(json.dumps(document, indent=2) + "\n")
    long = {row.key for row in ROWS if row.steps == LONG}
    worse = [key for key in keys if key in long and not fell(rows[key])]
    if worse:
        print(f"the held-out loss did not fall: {', '.join(worse)}", file=sys.stderr)
    return 1 if worse or any("error" in rows[key] for key in keys) else 0


def fell(row: dict[str, Any]) -> bool:
    return "error" not in row and row["held_out"] == "loss" and row["held_out_after"] < row["held_out_before"]


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    mib = 2**20
    return (
        f"held-out {row['held_out']} {row['held_out_before']:.3f} -> {row['held_out_after']:.3f} in {row['steps']} steps, "
        f"{row['tokens_per_second']:.0f} tokens/s, peak {row['peak_memory'] / mib:.0f} MiB, "
        f"state {row['optimizer_state'] / mib:.1f} MiB, {row['trained_parameters']:,} trained"
    )


if __name__ == "__main__":
    sys.exit(main())
