"""`make rlhf`: from a chat model to one that people's preferences have shaped, in both usual ways, on SmolLM2.

    sft --> rm --> ppo       a reward model learns from pairs of answers, the policy learns from the reward model
     `----> dpo              the policy learns from the same pairs directly

    python -m luthier.cli.chain                  # examples/rlhf/{sft,rm,ppo,dpo}.yaml, one after the other
    python -m luthier.cli.chain --from ppo       # keeps the runs before it
    python -m luthier.cli.chain --only dpo

Each stage is `luthier train` in a process of its own, on the former one's output folder; earlier runs in these folders are
replaced. After each, three questions are answered and scored by the reward model as soon as there is one. The first stage
that fails ends the chain with its exit code. What was found is kept in chain.json beside the runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.cli.errors import guarded
from luthier.cli.text import duration, harmless
from luthier.core.atomic import write_text
from luthier.core.errors import ConfigError, ExitCode, LuthierError
from luthier.demo.fetching import write_files

if TYPE_CHECKING:
    from luthier.core.catalog import Catalog
    from luthier.demo.samples import Sample

CONFIGS: Final = Path("examples/rlhf")
RUNS: Final = Path("runs/rlhf")
STAGES: Final = ("sft", "rm", "ppo", "dpo")
JUDGE: Final = "rm"
START: Final = "start"
# Of all_results.json, what each stage is about: what it is called here, and where its value is, before and after.
MEASURED: Final[dict[str, dict[str, tuple[str | None, str]]]] = {
    "sft": {"held-out loss": (None, "eval_loss")},
    "rm": {"held-out accuracy": ("eval_accuracy_longer", "eval_accuracy"), "held-out margin": (None, "eval_margin")},
    "ppo": {"held-out reward": ("eval_reward_before", "eval_reward"), "KL, nats": (None, "kl")},
    "dpo": {"held-out accuracy": (None, "eval_accuracy"), "held-out margin": (None, "eval_margin")},
}
BEFORE_MEANS: Final = {"rm": "of choosing the longer answer"}


class StageFailed(LuthierError):
    """A stage of the chain ended with another exit code than 0, which is that of the chain."""

    def __init__(self, stage: str, code: int) -> None:
        self.code = code
        super().__init__(
            f"the stage {stage} ended with exit code {code}, so the chain ends here",
            where="rlhf",
            fix=f"what was wrong stands above; afterwards go on with: python -m luthier.cli.chain --from {stage}",
        )


@dataclass
class Chain:
    """What is known so far: answers by the stage that gave them, the results of each stage, and the seconds it took."""

    configs: Path
    catalog: Catalog
    answers: dict[str, list[Sample]] = field(default_factory=dict)
    rewards: dict[str, list[float]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def folder(self, stage: str) -> Path:
        """Where a stage leaves its run."""
        from luthier.core.config import load_config

        return Path(load_config(self.configs / f"{stage}.yaml").output)

    def train(self, stage: str) -> None:
        """Run a stage. Raises StageFailed."""
        say(f"\n==== {stage}: luthier train {self.configs / stage}.yaml\n")
        began = time.monotonic()
        command = [sys.executable, "-m", "luthier", "train", str(self.configs / f"{stage}.yaml"), "--overwrite", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603  a list
        if done.returncode != 0:
            raise StageFailed(stage, done.returncode)
        self.results[stage] = json.loads(done.stdout)
        self.seconds[stage] = time.monotonic() - began

    def look(self, stage: str) -> None:
        """Let the stage's model answer, or, where it is the judge, judge the answers of the policy it began with."""
        from luthier.demo import samples

        said = [name for name in self.answers if name not in self.rewards]
        if stage != JUDGE:
            self.answers[stage] = samples.answers(self.folder(stage), self.catalog)
            said.append(stage)
        if self.has_judge(stage):
            judged = samples.scores(self.folder(JUDGE), self.catalog, *(self.answers[name] for name in said))
            self.rewards.update(zip(said, judged, strict=True))

    def has_judge(self, stage: str) -> bool:
        """Whether there is a reward model that belongs to this chain: trained now, or kept from before."""
        return JUDGE in self.results or (
            stage in STAGES[STAGES.index(JUDGE) :] and (self.folder(JUDGE) / "plan.json").is_file()
        )


def run(configs: Path, stages: Sequence[str], *, fetch: Callable[[Path], Any] = write_files) -> Chain:
    """Run the stages in order and report after each; returns what was found. Raises StageFailed, and LuthierError."""
    import luthier
    from luthier.demo import samples
    from luthier.registry.catalog import discover

    for stage in stages:
        if not (configs / f"{stage}.yaml").is_file():
            raise ConfigError(f"there is no {stage}.yaml", where=str(configs), fix="start it in Luthier's own folder")
    began = time.monotonic()
    fetch(RUNS / "data")
    chain = Chain(configs, discover())
    if STAGES[0] in stages:
        say("==== before training")
        chain.answers[START] = samples.first_answers(luthier.plan(configs / f"{STAGES[0]}.yaml"))
        show_answers(chain, START)
    else:
        chain.answers[STAGES[0]] = samples.answers(chain.folder(STAGES[0]), chain.catalog)
    for stage in stages:
        chain.train(stage)
        chain.look(stage)
        show_stage(chain, stage)
    total = time.monotonic() - began
    show_end(chain, stages, total)
    write_text(RUNS / "chain.json", json.dumps(report(chain, total), indent=2, ensure_ascii=False) + "\n")
    return chain


def show_stage(chain: Chain, stage: str) -> None:
    """What a stage's results say, and the answers that changed or were judged."""
    say(f"\n---- {stage} is done, in {duration(chain.seconds[stage])}")
    for line in measured(stage, chain.results[stage]):
        say(f"  {line}")
    for name in list(chain.answers) if stage == JUDGE else [stage]:
        show_answers(chain, name)


def measured(stage: str, results: Mapping[str, Any]) -> list[str]:
    """The lines about a stage's own numbers."""
    lines = []
    for name, (before, after) in MEASURED[stage].items():
        text = f"{name:<18} {results[after]:.3f}"
        if before is not None:
            text += f", {BEFORE_MEANS.get(stage, 'before')}: {results[before]:.3f}"
        lines.append(text)
    return lines


def show_answers(chain: Chain, name: str) -> None:
    """The questions, and what the model of this name answers to them, with rewards where they are known."""
    rewards = chain.rewards.get(name)
    say(f"  answers {'of the model before training' if name == START else f'after {name}'}")
    for sample in chain.answers[name]:
        judged = f"   reward {rewards[sample.row]:+.2f}" if rewards else ""
        say(f"    {sample.question}{judged}")
        say(f"      {harmless(sample.shown)}")


def show_end(chain: Chain, stages: Sequence[str], total: float) -> None:
    """A table of the stages, and what all of it took."""
    say(f"\n==== {' '.join(stages)}: {duration(total)} in all\n")
    say(f"{'stage':<7}{'time':<13}{'mean reward of the three answers':<35}held out")
    for name in (START, *stages):
        if name != START or START in chain.answers:
            rewards = chain.rewards.get(name)
            reward = f"{sum(rewards) / len(rewards):+.2f}" if rewards else "-"
            found = (
                "; ".join(" ".join(line.split()) for line in measured(name, chain.results[name])) if name != START else ""
            )
            say(f"{name:<7}{duration(chain.seconds[name]) if name != START else '-':<13}{reward:<35}{found}".rstrip())


def report(chain: Chain, total: float) -> dict[str, Any]:
    """The same, JSON-shaped. Times in seconds."""
    return {
        "machine": describe(),
        "seconds": round(total, 1),
        "stages": {
            stage: {
                "seconds": round(chain.seconds[stage], 1),
                "output": str(chain.folder(stage)),
                **{key: results[key] for pair in MEASURED[stage].values() for key in pair if key is not None},
            }
            for stage, results in chain.results.items()
        },
        "answers": {
            name: [
                {"question": sample.question, "answer": sample.text, "finished": sample.answer.finished}
                | ({"reward": chain.rewards[name][sample.row]} if name in chain.rewards else {})
                for sample in samples
            ]
            for name, samples in chain.answers.items()
        },
    }


def describe() -> dict[str, Any]:
    """Where it ran."""
    from luthier.registry.environment import read_environment

    environment = read_environment(probe=False)
    return {"cpu": environment.cpu, "cores": environment.cores, "device": environment.device_name or environment.device}


def say(text: str) -> None:
    print(text, flush=True)


def main(words: list[str]) -> int:
    """Read the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m luthier.cli.chain", description="sft -> rm -> ppo, and sft -> dpo.")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of sft.yaml, rm.yaml, ppo.yaml and dpo.yaml")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--from", choices=STAGES, dest="first", help="begin here, with the runs that are there")
    part.add_argument("--only", choices=STAGES, help="this stage alone")
    given = parser.parse_args(words)
    stages = (given.only,) if given.only else STAGES[STAGES.index(given.first) if given.first else 0 :]
    run(given.configs, stages)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(guarded(sys.argv[1:], main))
