"""It learns: from a model that writes valid JSON some of the time to one that nearly always does."""

from __future__ import annotations

from typing import Any

import pytest

PROMPTS = ["a", "b", "list", "object", "one", "two", "three", "four"]
# Three of eight are JSON.
ANSWERS = ['{"a": 1}', "[1, 2]", "[3]", "{'a': 1}", "[1, 2", '{"a" 1}', "[3", "{a: 1}"]


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_json_validity_reaches_nine_of_ten(run: Any, taught: Any, stage: str) -> None:
    ran = run(
        {"use": stage, "reward": "json_valid", "num_generations": 8, "prompts_per_step": 8, "max_new_tokens": 12},
        model=taught(PROMPTS, ANSWERS),
        rows=[{"prompt": prompt} for prompt in PROMPTS],
        lr=5e-4,
        batch_tokens=4096,
        max_steps=20,
    )
    rewards = [step["reward"] for step in ran.told("step")]
    assert rewards[0] < 0.6
    assert sum(rewards[-5:]) / 5 >= 0.9
    assert ran.told("step")[-1]["finished"] > 0.9
