"""Do the stages after SFT learn what they are for? Five checks on the real SmolLM2-135M.

    python -m luthier.benchmarks.learning            # all of them, each in a fresh process
    python -m luthier.benchmarks.learning rm dpo     # some; the others of the result file are kept

rm           pairwise accuracy on 60 held-out pairs of dpo_en_demo above 0.6, beside that of choosing the longer answer
dpo          on the same pairs: the held-out margin rises (it is 0 before), and the accuracy is above 0.6
ppo          a rule as the reward (at most 20 words, and a full stop at the end): at least half of the gap between the
             first reward and the greatest possible one is closed within 60 updates, with a KL below twice its target
ppo-reward   the reward model of `rm` as the reward: the reward on held-out prompts rises
grpo         the part of the answers that is valid JSON reaches 0.9

The configurations are those of examples/, so that what is measured is what is shown; those of examples/rlhf start from the
plain SmolLM2 here, and not from a run of `sft`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.benchmarks.machine import describe_machine

EXAMPLES: Final = Path(__file__).resolve().parents[1] / "examples"
RESULT: Final = Path(__file__).parent / "results" / "learning.json"
MODEL: Final = "smollm2-135m"
ACCURACY: Final = 0.6
VALID: Final = 0.9
UPDATES: Final = 60
LAST: Final = 5  # updates whose mean stands for where a run with a sampled reward arrived

Found = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """A run of one configuration; `learned` says, from what is recorded of it, whether it learned."""

    name: str
    config: str
    about: Callable[[Found, list[Found], Found], Found]
    learned: Callable[[Found], bool]
    overrides: tuple[str, ...] = ()
    needs: str = ""


def about_pairs(results: Found, steps: list[Found], config: Found) -> Found:
    names = ("eval_loss", "eval_accuracy", "eval_margin", "eval_accuracy_longer")
    return {name: results[name] for name in names if name in results}


def about_rule(results: Found, steps: list[Found], config: Found) -> Found:
    """Means over the sampled answers of the first update, and of the last `LAST`; all terms are 1 at the most."""
    first, last = steps[0], steps[-LAST:]
    greatest = sum(term.get("weight", 1.0) for term in config["stage"]["reward"])
    reached = mean(step["reward"] for step in last)
    return {
        "updates": len(steps),
        "reward_first": first["reward"],
        "reward_last": reached,
        "reward_greatest": greatest,
        "gap_closed": (reached - first["reward"]) / (greatest - first["reward"]),
        "kl": mean(step["kl"] for step in last),
        "kl_target": config["stage"]["kl"]["target"],
    } | held_out(results)


def about_reward_run(results: Found, steps: list[Found], config: Found) -> Found:
    last = steps[-LAST:]
    return {
        "updates": len(steps),
        "reward_first": steps[0]["reward"],
        "reward_last": mean(step["reward"] for step in last),
        "kl": mean(step["kl"] for step in last),
        "kl_target": config["stage"]["kl"]["target"],
    } | held_out(results)


def about_json(results: Found, steps: list[Found], config: Found) -> Found:
    first, last = steps[0], steps[-LAST:]
    return {"updates": len(steps), "valid_first": first["reward"], "valid_last": mean(step["reward"] for step in last)} | (
        held_out(results)
    )


def held_out(results: Found) -> Found:
    return {name: results[name] for name in ("eval_reward_before", "eval_reward") if name in results}


def mean(values: Any) -> float:
    numbers = list(values)
    return float(sum(numbers) / len(numbers))


FROM_THE_START: Final = (f"model={MODEL}",)
CHECKS: Final = (
    Check("rm", "rlhf/rm.yaml", about_pairs, lambda found: found["eval_accuracy"] > ACCURACY, FROM_THE_START),
    Check(
        "dpo",
        "rlhf/dpo.yaml",
        about_pairs,
        lambda found: found["eval_accuracy"] > ACCURACY and found["eval_margin"] > 0,
        FROM_THE_START,
    ),
    Check(
        "ppo",
        "ppo.yaml",
        about_rule,
        lambda found: found["gap_closed"] >= 0.5 and found["updates"] <= UPDATES and found["kl"] < 2 * found["kl_target"],
    ),
    Check(
        "ppo-reward",
        "rlhf/ppo.yaml",
        about_reward_run,
        lambda found: found["eval_reward"] > found["eval_reward_before"],
        FROM_THE_START,
        needs="rm",
    ),
    Check("grpo", "grpo.yaml", about_json, lambda found: found["valid_last"] >= VALID),
)


def measure(name: str) -> Found:
    """Run one check in this process, and first the one that it needs; data and runs go below the current folder."""
    import luthier
    from luthier.core.frozen import thaw
    from luthier.demo.fetching import write_files

    check = by_name(name)
    write_files(Path("runs/rlhf/data"))
    if check.needs and not Path("runs/rlhf", check.needs, "all_results.json").is_file():
        measure(check.needs)
    began = time.monotonic()
    plan = luthier.plan(luthier.load_config(EXAMPLES / check.config, [*check.overrides, "train.log_every=1"]))
    results = luthier.train(plan)
    metrics = Path(results["output"], "metrics.jsonl").read_text(encoding="utf-8")
    steps = [line for line in map(json.loads, metrics.splitlines()) if line["event"] == "step"]
    config = thaw(plan.config)
    return check.about(results, steps, config) | {
        "config": f"examples/{check.config}",
        "overrides": list(check.overrides),
        **{key: config[key] for key in ("stage", "adapter", "optimizer", "train")},
        "tokens": results["tokens"],
        "peak_memory": results["memory"]["measured_peak"],
        "seconds": round(time.monotonic() - began, 1),
    }


def by_name(name: str) -> Check:
    return next(check for check in CHECKS if check.name == name)


def in_fresh_process(name: str, folder: Path) -> Found:
    """One check's record, with whether it learned; or its error. Its runs are left below `folder`."""
    record = folder.resolve() / f"{name}.json"
    command = [sys.executable, "-m", "luthier.benchmarks.learning", "--measure", name, "--record", str(record)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        return {"learned": False, "error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: Found = json.loads(record.read_text(encoding="utf-8"))
    return {"learned": by_name(name).learned(found)} | found


def main() -> int:
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--measure", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        given.record.write_text(json.dumps(measure(given.measure)), encoding="utf-8")
        return 0
    unknown = sorted(set(given.checks) - set(names))
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}; there are: {', '.join(names)}")
    before = json.loads(given.result.read_text(encoding="utf-8"))["checks"] if given.checks and given.result.exists() else {}
    found = dict(before)
    wanted = given.checks or names
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            found[name] = in_fresh_process(name, Path(folder))
            print(f"{name:<11}{line(found[name])}", flush=True)
            ordered = {name: found[name] for name in names if name in found}
            document = {"machine": describe_machine(), "model": MODEL, "checks": ordered}
            given.result.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if all(found[name]["learned"] for name in wanted) else 1


def line(found: Found) -> str:
    """One check as a person reads it."""
    if "error" in found:
        return f"failed: {found['error']}"
    numbers = [f"{key} {value:.3f}" for key, value in found.items() if isinstance(value, float) and key != "seconds"]
    return f"{'learned' if found['learned'] else 'DID NOT LEARN'} in {found['seconds']:.0f} s: {', '.join(numbers)}"


if __name__ == "__main__":
    sys.exit(main())
