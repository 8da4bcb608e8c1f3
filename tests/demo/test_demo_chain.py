"""The chain around its stages, which here are a tiny model's few steps: what is run, shown, kept, and how it fails."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import luthier
from luthier.cli import chain
from luthier.cli.errors import guarded
from luthier.core.errors import ConfigError
from luthier.demo.samples import QUESTIONS

ROOT = Path(__file__).parents[2]
ROWS = [{"instruction": f"Say {word}.", "output": word} for word in ("one", "two", "three", "four", "five", "six")]
PAIRS = [
    {"prompt": f"Say {word}.", "chosen": word, "rejected": "No, no."} for word in ("one", "two", "three", "four", "five")
]


@pytest.fixture
def configs(tmp_path: Path, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of four small configurations, in the current folder of a chain that trains in this process."""
    monkeypatch.chdir(tmp_path)
    common = {"adapter": {"use": "lora", "rank": 2}, "train": {"max_steps": 2, "batch_tokens": 512, "seed": 1}}
    pairs = {"train": ["runs/rlhf/data/pairs.json"], "eval": 2}
    rows = {"train": [{"path": "runs/rlhf/data/rows.json"}], "eval": 2}
    prompts = {"train": [{"path": "runs/rlhf/data/rows.json", "kind": "prompt"}], "eval": 2}
    reward = [{"use": "run", "path": "runs/rlhf/rm"}]
    ppo = {"use": "ppo", "reward": reward, "batch": 2, "mini_batches": 1, "ppo_epochs": 1, "max_new_tokens": 4}
    stages = {
        "sft": {"model": str(tiny_folder("llama")), "data": rows, "stage": "sft"},
        "rm": {"model": "runs/rlhf/sft", "data": pairs, "stage": "rm"},
        "ppo": {"model": "runs/rlhf/sft", "data": prompts, "stage": ppo},
        "dpo": {"model": "runs/rlhf/sft", "data": pairs, "stage": "dpo"},
    }
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, content in stages.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | content | {"output": f"runs/rlhf/{name}"}))

    def train(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "luthier", "train"]
        assert command[5:] == ["--overwrite", "--json"]
        return subprocess.CompletedProcess(command, 0, json.dumps(luthier.train(command[4], overwrite=True)), "")

    monkeypatch.setattr(subprocess, "run", train)
    return folder


def fetch(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "pairs.json").write_text(json.dumps(PAIRS))


def test_each_stage_starts_from_the_former_and_its_answers_are_judged(
    configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = chain.run(configs, chain.STAGES, fetch=fetch)
    kept = json.loads(Path("runs/rlhf/chain.json").read_text())
    assert list(kept["stages"]) == ["sft", "rm", "ppo", "dpo"]
    assert list(kept["answers"]) == ["start", "sft", "ppo", "dpo"]
    for stage in ("rm", "ppo", "dpo"):
        plan = json.loads(Path(f"runs/rlhf/{stage}/plan.json").read_text())
        assert plan["model"]["former"]["folder"] == str(Path("runs/rlhf/sft").resolve())
    for name, answers in kept["answers"].items():
        assert [answer["question"] for answer in answers] == list(QUESTIONS)
        assert all(math.isfinite(answer["reward"]) for answer in answers), name
    results = json.loads(Path("runs/rlhf/rm/all_results.json").read_text())
    assert kept["stages"]["rm"]["eval_accuracy"] == results["eval_accuracy"]
    shown = capsys.readouterr().out
    for name in ("before training", "after sft", "after ppo", "after dpo"):
        assert f"answers of the model {name}" in shown or f"answers {name}" in shown
    assert f"held-out accuracy  {results['eval_accuracy']:.3f}" in shown
    assert shown.count("reward ") >= 3 * 4
    assert done.seconds.keys() == set(chain.STAGES)

    later = chain.run(configs, ("dpo",), fetch=fetch)
    assert list(later.answers) == ["sft", "dpo"]
    # The same weights, and the judge that the first chain left: the same rewards.
    assert later.rewards["sft"] == pytest.approx(done.rewards["sft"])


def test_a_stage_that_fails_ends_the_chain_with_its_code(
    configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fail(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[4])
        return subprocess.CompletedProcess(command, 6, "", "")

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(chain, "write_files", fetch)
    monkeypatch.setattr(chain.run, "__kwdefaults__", {"fetch": fetch})
    assert guarded(["--configs", str(configs)], chain.main) == 6
    assert asked == [str(configs / "sft.yaml")]
    assert "--from sft" in capsys.readouterr().err


def test_a_folder_without_the_configurations_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no sft\.yaml"):
        chain.run(tmp_path, chain.STAGES, fetch=lambda folder: pytest.fail("fetched"))


@pytest.mark.parametrize("stage", chain.STAGES)
def test_the_examples_are_a_chain(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage, folders and former run are what the driver takes for granted; rm and ppo stand on the same weights."""
    monkeypatch.chdir(tmp_path)  # where no run has left data yet: paths that are there become absolute
    config = luthier.load_config(ROOT / "examples" / "rlhf" / f"{stage}.yaml")
    assert config.stage.use == stage
    assert config.output == f"runs/rlhf/{stage}"
    assert config.model.name == ("smollm2-135m" if stage == "sft" else "runs/rlhf/sft")
    assert config.model.adapters == {"sft": "auto", "rm": "merge", "ppo": "merge", "dpo": config.model.adapters}[stage]
    assert all(source.path.startswith("runs/rlhf/data/") for source in config.data.train)
