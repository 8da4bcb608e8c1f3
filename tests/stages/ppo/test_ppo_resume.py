"""A run that was stopped or killed goes on as if it had not been, bit for bit: weights, numbers, prompts, coefficient."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.errors import Interrupted, OutputError
from tests.stages.running import stopping

OPTIONS: dict[str, dict[str, Any]] = {
    "shared": {},
    "value adapter, dropout, penalty": {
        "stage": {"value_adapter": True, "missing_eos_penalty": 0.5, "entropy_coef": 0.01},
        "adapter": {"use": "lora", "rank": 4, "dropout": 0.2},
    },
    "copied reference": {"adapter": {"use": "lora", "rank": 4, "init": "pissa"}},
    "full": {"adapter": "full", "optimizer": {"use": "adamw", "lr": 1e-4}},
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each step, without what depends on the clock and the machine."""
    passing = ("tokens_per_second", "trained_tokens_per_second", "memory", "remaining")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in passing} for line in lines]


def data_of(run_of: Any) -> dict[str, Any]:
    return run_of.config()["data"] | {"eval": 4}


@pytest.mark.parametrize("name", OPTIONS)
def test_stopped_in_the_second_of_four_steps(name: str, run_of: Any) -> None:
    options = OPTIONS[name] | {"data": data_of(run_of)}
    straight = run_of(output=str(run_of.folder / "straight"), **options)
    # While the answers of the second step were sampled: that step begins anew.
    with pytest.raises(Interrupted, match=r"after step 1 of 4.*checkpoint-1[\s\S]*--resume"):
        run_of(**stopping(1), **options)
    torch.manual_seed(99)
    results = run_of(resume=True, **options)
    first, second = run_of.folder / "straight", run_of.folder / "run"
    assert numbers(second) == numbers(first)
    expected = weights(first)
    found = weights(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    for key in ("eval_reward", "eval_reward_before", "reward", "reward_first", "kl_coef", "tokens", "endless_steps"):
        assert results[key] == straight[key], key


def test_killed_between_checkpoints(run_of: Any) -> None:
    """What was done after the last checkpoint is done again; the value head and the optimizer come from the checkpoint."""
    run_of(output=str(run_of.folder / "straight"), stage={"value_adapter": True})

    class Killed(Exception):
        pass

    from luthier.plugins.ppo.updates import Learner

    update = Learner.update

    def dying(self: Any, *args: Any, step: int) -> Any:
        if step == 4:
            raise Killed
        return update(self, *args, step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", dying)
        with pytest.raises(Killed):
            run_of(stage={"value_adapter": True}, train={"save_every": 2})
    run_of(stage={"value_adapter": True}, train={"save_every": 2}, resume=True)
    first, second = run_of.folder / "straight", run_of.folder / "run"
    assert numbers(second) == numbers(first)
    assert all(torch.equal(weights(second)[key], value) for key, value in weights(first).items())
    checkpoint = second / "checkpoint-4"
    assert {path.suffix for path in checkpoint.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jinja"}
    own = load_file(checkpoint / "ppo.safetensors")
    assert any("value_head.weight" in name for name in own)
    assert any(".lora_B.critic." in name for name in own)
    assert not any("value" in name or "critic" in name for name in weights(second)), "the policy is saved alone"


def test_a_reward_that_draws_random_numbers(run_of: Any) -> None:
    """Those that it draws for held-out prompts are not those of training, whichever side of a checkpoint they come on."""
    code = run_of.folder / "noise.py"
    code.write_text("import random\ndef score(completions, **_):\n    return [random.random() for _ in completions]\n")
    options = {"stage": {"reward": {"use": "function", "path": f"{code}:score"}}, "train": {"eval_every": 1}}
    options["data"] = data_of(run_of)
    run_of(output=str(run_of.folder / "straight"), **options)
    with pytest.raises(Interrupted):
        run_of(**stopping(1), **options)
    random.seed(99)
    run_of(resume=True, **options)
    steps = [[one for one in numbers(run_of.folder / name) if one["event"] == "step"] for name in ("straight", "run")]
    assert steps[0] == steps[1]


def test_a_finished_run_resumes_to_its_results(run_of: Any) -> None:
    options = {"data": data_of(run_of), "train": {"save_every": 2, "max_steps": 2}}
    first = run_of(**options)
    again = run_of(resume=True, **options)
    for key in ("eval_reward", "eval_reward_before", "reward", "kl", "train_loss"):
        assert again[key] == first[key], key


def test_other_prompts_are_refused(run_of: Any) -> None:
    run_of(train={"max_steps": 2, "save_every": 1})
    shutil.copy(run_of.folder / "prompts.jsonl", run_of.folder / "kept.jsonl")
    (run_of.folder / "prompts.jsonl").write_text('{"prompt": "something else"}\n')
    with pytest.raises(OutputError, match="other prompts"):
        run_of(train={"max_steps": 2, "save_every": 1}, resume=True)


def test_every_prompt_once_in_an_epoch(run_of: Any) -> None:
    from types import SimpleNamespace

    import numpy as np

    from luthier.plugins.ppo.prompts import Prompts

    rows = type("Rows", (), {"lengths": np.full(10, 5), "digest": "d", "__len__": lambda self: 10})()
    train = SimpleNamespace(accumulation=1, seed=3, max_steps=None, epochs=2.0, batch_tokens=100)
    runtime: Any = SimpleNamespace(
        data=SimpleNamespace(train=rows),
        config=SimpleNamespace(train=train),
        plan=SimpleNamespace(profile=SimpleNamespace(context_length=512)),
    )
    config: Any = SimpleNamespace(batch=4, max_new_tokens=8)
    prompts = Prompts(runtime, config)
    assert prompts.updates == 5
    seen = [row for step in range(1, 6) for row in prompts.of(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert prompts.of(3) == seen[8:12]
    assert prompts.epoch_of(5) == 2.0
