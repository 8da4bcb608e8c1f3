"""Peak memory of PPO on SmolLM2: one base model for four roles, against an SFT run, and against four models.

    python -m luthier.benchmarks.ppo_memory            # about ten minutes on two cores
    python -m luthier.benchmarks.ppo_memory sft ppo    # some rows; the others of the result file are kept

Every row trains the same LoRA in micro-batches of the same number of tokens, in a process of its own, for two steps. The
rows of data have nearly one length, and about half of their tokens are an answer; PPO's answers are forced to that length.
Its micro-batches are full; those of sft have a few tokens less.

    sft             supervised fine-tuning
    ppo             reward: a rule; the values read the policy's hidden states
    ppo-value       ... with an adapter of their own
    ppo-reward      ... and scores from a reward run that shares the base
    four            the same four roles as four models: policy, reference, values, reward, each with its base

`peak` is the resident memory of the process on a CPU, what torch's allocator gave on CUDA; `tensors` is the peak less what
the process held with its libraries imported and nothing loaded. glibc is told to give freed memory back at once.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from luthier.benchmarks.machine import describe_machine

RESULT: Final = Path(__file__).parent / "results" / "ppo_memory.json"
MODEL: Final = "smollm2-135m"
ROWS: Final = ("sft", "ppo", "ppo-value", "ppo-reward", "four")
BATCH_TOKENS: Final = 1024
ANSWER: Final = 64
PROMPTS: Final = 16
STEPS: Final = 2
LIMIT: Final = 1.25
# glibc's: memory of this size and more goes back to the system as soon as it is free, in every row. By default it keeps what
# was free once, and the peak would be about the order of sizes that were asked for.
GIVEN_BACK: Final = {"MALLOC_MMAP_THRESHOLD_": str(1024**2)}


def write_rows(folder: Path) -> dict[str, Path]:
    """Prompts of about as many tokens as an answer has, with and without answers, and pairs of answers."""
    words = ("river", "stone", "green", "seven", "house", "paper", "light", "north")
    text = [" ".join(words[(row + at) % len(words)] for at in range(ANSWER)) for row in range(PROMPTS)]
    asked = [f"{row % 10} {' '.join(line.split()[:32])}" for row, line in enumerate(text)]
    rows = {
        "prompt": [{"prompt": prompt} for prompt in asked],
        "conversation": [{"prompt": prompt, "completion": line} for prompt, line in zip(asked, text, strict=True)],
        "preference": [{"prompt": p, "chosen": line, "rejected": line[::-1]} for p, line in zip(asked, text, strict=True)],
    }
    found = {}
    for kind, lines in rows.items():
        found[kind] = folder / f"{kind}.jsonl"
        found[kind].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return found


def configuration(row: str, folder: Path) -> dict[str, Any]:
    """The configuration of a row, as a user would write it."""
    files = write_rows(folder)
    stage: Any = "sft"
    if row != "sft":
        share = row == "ppo-reward"
        judged = {"use": "run", "path": str(folder / "reward"), "share": share, "batch_tokens": BATCH_TOKENS}
        stage = {
            "use": "ppo",
            "reward": judged if row in ("ppo-reward", "four") else {"use": "length", "max_words": 20},
            "batch": PROMPTS // 2,
            "mini_batches": 1,
            "ppo_epochs": 1,
            "min_new_tokens": ANSWER,
            "max_new_tokens": ANSWER,
            "value_adapter": row != "ppo",
            "reference": "model" if row == "four" else "auto",
        }
    return {
        "model": MODEL,
        "data": {"train": [str(files["conversation" if row == "sft" else "prompt"])], "max_length": 512},
        "stage": stage,
        "adapter": "lora",
        "optimizer": {"use": "adamw", "lr": 1e-4},
        "patches": [],
        "precision": "fp32",
        "train": {"max_steps": STEPS, "batch_tokens": BATCH_TOKENS},
        "output": str(folder / row),
    }


def train_reward(folder: Path) -> None:
    """One step of a reward run, in a process of its own: what it held must not count."""
    config = configuration("sft", folder) | {
        "stage": "rm",
        "data": {"train": [str(write_rows(folder)["preference"])], "max_length": 512},
        "train": {"max_steps": 1, "batch_tokens": 512},
        "output": str(folder / "reward"),
    }
    source = f"import json, luthier; luthier.train(luthier.load_config(json.loads({json.dumps(config)!r})))"
    subprocess.run([sys.executable, "-c", source], check=True, capture_output=True)


@contextmanager
def separate_models(wanted: bool) -> Iterator[None]:
    """Within the block the values have a whole model of their own, where `wanted`."""
    from luthier.plugins.ppo import roles, stage

    class FourModels(roles.Roles):
        """Policy and values as two models; the reference is a third, the reward a fourth."""

        def __init__(self, model: Any, **options: Any) -> None:
            super().__init__(model, **options | {"value_adapter": False})
            self.value_adapter = True  # a forward pass of their own
            self.value_model = copy.deepcopy(model)

        @contextmanager
        def values(self) -> Iterator[Any]:
            yield self.value_model

        @contextmanager
        def with_head(self) -> Iterator[None]:
            self.head.add_module("model", self.value_model)
            with super().with_head():
                yield
            del self.head.model

        def _value_parameters(self) -> list[Any]:
            return []

    if wanted:
        vars(stage)["Roles"] = FourModels
    try:
        yield
    finally:
        vars(stage)["Roles"] = roles.Roles


def measure(row: str, folder: Path) -> dict[str, Any]:
    """Run one row in this process."""
    import peft  # noqa: F401  what every row imports is not counted as its tensors
    import transformers  # noqa: F401
    import trl  # noqa: F401

    import luthier
    from luthier.core.meter import MemoryMeter

    config = luthier.load_config(configuration(row, folder))
    held = MemoryMeter(luthier.plan(config).device).current
    with separate_models(row == "four"):
        results = luthier.train(config)
    peak = results["memory"]["measured_peak"]
    return {
        "peak": peak,
        "tensors": peak - held,
        "predicted": results["memory"]["predicted"]["peak"],
        "tokens": results["tokens"] // STEPS,
        "trained_parameters": results["trained_parameters"],
        "parameters": results["parameters"],
    }


def in_fresh_process(row: str) -> dict[str, Any]:
    """One row's measurements; raises RuntimeError with what the process said."""
    with tempfile.TemporaryDirectory() as folder:
        if row in ("ppo-reward", "four"):
            train_reward(Path(folder))
        command = [sys.executable, "-m", "luthier.benchmarks.ppo_memory", "--measure", row, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | GIVEN_BACK)
        if done.returncode:
            raise RuntimeError(f"{row} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads((Path(folder) / "row.json").read_text())
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--measure", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        found = measure(arguments.measure, arguments.folder)
        (arguments.folder / "row.json").write_text(json.dumps(found))
        return 0
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    rows = json.loads(RESULT.read_text())["rows"] if arguments.rows and RESULT.exists() else {}
    for row in arguments.rows or ROWS:
        rows[row] = in_fresh_process(row)
        print(f"{row:<12} {line(rows[row], rows.get('sft'))}", flush=True)
    ordered = {row: rows[row] for row in ROWS if row in rows}
    compared = {row: ratios(found, ordered["sft"]) for row, found in ordered.items() if "sft" in ordered}
    document = {
        "benchmark": "ppo_memory",
        "machine": describe_machine(),
        "model": MODEL,
        "precision": "fp32",
        "batch_tokens": BATCH_TOKENS,
        "answer_tokens": ANSWER,
        "limit": LIMIT,
        "rows": ordered,
        "ratios": compared,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(document, indent=2) + "\n")
    above = [row for row, ratio in compared.items() if row != "four" and max(ratio.values()) > LIMIT]
    if above:
        print(f"more than {LIMIT} times the memory of sft: {', '.join(above)}", file=sys.stderr)
    return 1 if above else 0


def ratios(found: dict[str, Any], sft: dict[str, Any]) -> dict[str, float]:
    return {name: round(found[name] / sft[name], 3) for name in ("peak", "tensors")}


def line(found: dict[str, Any], sft: dict[str, Any] | None) -> str:
    mib = 2**20
    text = f"peak {found['peak'] / mib:,.0f} MiB, tensors {found['tensors'] / mib:,.0f} MiB"
    return text if sft is None else f"{text}, {ratios(found, sft)} of sft"


if __name__ == "__main__":
    sys.exit(main())
