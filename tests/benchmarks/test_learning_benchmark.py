"""What the learning benchmark records of a run, and when it says that a stage learned; the runs are slow tests."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.benchmarks import learning
from luthier.benchmarks.learning import CHECKS, EXAMPLES, by_name, in_fresh_process, line

RULE = {"stage": {"reward": [{"use": "length", "weight": 0.5}, {"use": "regex", "weight": 1.5}], "kl": {"target": 8.0}}}


def steps(rewards: list[float], kl: float = 3.0) -> list[dict[str, Any]]:
    return [{"reward": reward, "kl": kl} for reward in rewards]


def test_the_gap_is_from_the_first_update_to_the_greatest_reward() -> None:
    """First 0.4, greatest 0.5 + 1.5, the last five of mean 1.2: 0.8 of 1.6. The sixth from the end plays no part."""
    found = learning.about_rule({}, steps([0.4, 9.0, 1.0, 1.1, 1.2, 1.3, 1.4]), RULE)
    assert found["reward_greatest"] == 2
    assert found["reward_last"] == pytest.approx(1.2)
    assert found["gap_closed"] == pytest.approx(0.5)
    assert found["updates"] == 7


@pytest.mark.parametrize(
    ("name", "found", "learned"),
    [
        ("rm", {"eval_accuracy": 0.61}, True),
        ("rm", {"eval_accuracy": 0.6}, False),
        ("dpo", {"eval_accuracy": 0.61, "eval_margin": 0.1}, True),
        ("dpo", {"eval_accuracy": 0.61, "eval_margin": 0.0}, False),
        ("ppo", {"gap_closed": 0.5, "updates": 60, "kl": 15.9, "kl_target": 8}, True),
        ("ppo", {"gap_closed": 0.49, "updates": 60, "kl": 1, "kl_target": 8}, False),
        ("ppo", {"gap_closed": 0.9, "updates": 61, "kl": 1, "kl_target": 8}, False),
        ("ppo", {"gap_closed": 0.9, "updates": 60, "kl": 16, "kl_target": 8}, False),
        ("ppo-reward", {"eval_reward": 0.2, "eval_reward_before": 0.1}, True),
        ("ppo-reward", {"eval_reward": 0.1, "eval_reward_before": 0.1}, False),
        ("grpo", {"valid_last": 0.9}, True),
        ("grpo", {"valid_last": 0.89}, False),
    ],
)
def test_what_counts_as_learned(name: str, found: dict[str, Any], learned: bool) -> None:
    assert by_name(name).learned(found) is learned


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_is_of_an_example(check: learning.Check) -> None:
    config = luthier.load_config(EXAMPLES / check.config, check.overrides)
    assert config.stage.use == check.name.partition("-")[0]
    assert config.model.name == learning.MODEL


def test_a_run_that_fails_is_recorded_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert options["cwd"] == tmp_path  # examples/rlhf names its folders from there
        return subprocess.CompletedProcess(command, 4, "", "Traceback\nDataError: no pairs\n")

    monkeypatch.setattr(subprocess, "run", fail)
    found = in_fresh_process("rm", tmp_path)
    assert found == {"learned": False, "error": "DataError: no pairs"}
    assert line(found) == "failed: DataError: no pairs"
