"""It learns: at least half of the way from the mean reward at the start to the greatest possible, near its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.frozen import FrozenDict

REWARDS = '''
def score(completions, **rest):
    """The part of an answer that is letters."""
    return [sum(one.isascii() and one.isalpha() for one in text) / max(len(text), 1) for text in completions]
'''
TARGET = 8.0


def means(steps: list[dict[str, Any]], name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)


@pytest.mark.parametrize("value_adapter", [False, True])
def test_half_of_the_gap_within_sixty_updates(value_adapter: bool, run_of: Any) -> None:
    from luthier.core.testing.models import tiny_model

    (run_of.folder / "rewards.py").write_text(REWARDS)
    steps = 30
    assert steps <= 60
    results = run_of(
        model=str(tiny_model("llama", FrozenDict()).folder),
        data=run_of.config()["data"] | {"eval": 8},
        stage={
            "reward": {"use": "function", "path": f"{run_of.folder / 'rewards.py'}:score"},
            "batch": 32,
            "mini_batches": 1,
            "max_new_tokens": 4,
            "min_new_tokens": 4,
            "kl": {"coef": 0.05, "target": TARGET},
            "value_adapter": value_adapter,
        },
        optimizer={"use": "adamw", "lr": 0.01, "schedule": "constant", "warmup": 0},
        train={"max_steps": steps, "batch_tokens": 2048},
    )
    told = run_of.told("step")
    start = told[0]["reward"]
    assert start < 0.3, "there is a gap"
    assert means(told[-5:], "reward") >= start + 0.5 * (1.0 - start)
    assert 0 < means(told[-5:], "kl") < 2 * TARGET
    assert results["eval_reward"] > results["eval_reward_before"] + 0.2
    assert told[-1]["kl_coef"] != told[0]["kl_coef"] == 0.05
    assert all(0 <= step["clip_fraction"] <= 1 and step["entropy"] > 0 for step in told)


@pytest.mark.slow
def test_smollm2_learns_to_be_brief(tmp_path: Path) -> None:
    """examples/ppo.yaml: in at most 20 words, ending with a full stop; 1 is the greatest reward."""
    import luthier

    steps: list[dict[str, Any]] = []

    def listen(event: Any) -> None:
        if event.kind == "step":
            steps.append(dict(event.values))

    example = Path(__file__).parents[3] / "examples" / "ppo.yaml"
    config = luthier.load_config(example, overrides=[f"output={tmp_path / 'run'}"])
    assert (config.train.max_steps or 0) <= 60
    luthier.train(config, observers=[listen])
    start, target = steps[0]["reward"], config.stage.options["kl"]["target"]
    assert means(steps[-5:], "reward") >= start + 0.5 * (1.0 - start)
    assert means(steps[-5:], "kl") < 2 * target
