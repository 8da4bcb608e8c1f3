"""A run that stops, because a reward fails or the user says so, and goes on as if nothing had happened."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import Interrupted
from luthier.core.extensions import RunEvent
from luthier.core.rewards import RewardError
from tests.stages.running import different_weights, stopping

STAGE = {"reward": [{"use": "length", "max_tokens": 3}, {"use": "regex", "pattern": "[a-m]"}]}


@pytest.fixture
def failing(tmp_path: Path) -> Any:
    """`(reward term, broken)`: a function that fails while the file `broken` is there."""
    broken, code = tmp_path / "broken", tmp_path / "rewards.py"
    code.write_text(
        "from pathlib import Path\n"
        "def score(completions, **_):\n"
        f"    bad = Path({str(broken)!r})\n"
        "    if bad.exists():\n"
        "        exec(bad.read_text())\n"
        "    values = [min(1.0, 3 / max(len(text), 1)) + ('e' in text) for text in completions]\n"
        "    return [float('nan'), *values[1:]] if bad.exists() else values\n"
    )
    return {"use": "function", "path": f"{code}:score"}, broken


@pytest.mark.parametrize(("code", "said"), [("raise ValueError('the judge is out')", "the judge is out"), ("", "gave nan")])
def test_a_reward_that_fails_leaves_a_checkpoint(run: Any, failing: Any, tmp_path: Path, code: str, said: str) -> None:
    term, broken = failing

    def breaks(event: RunEvent) -> None:
        if event.kind == "step" and event.values["step"] == 2:
            broken.write_text(code)

    straight = run({"reward": term}, output="straight", max_steps=4)
    events: list[RunEvent] = []
    with pytest.raises(RewardError, match=said) as caught:
        run({"reward": term}, max_steps=4, observers=(breaks, events.append))
    assert f"step 2 of 4 is saved in {tmp_path / 'run' / 'checkpoint-2'}" in str(caught.value)
    assert caught.value.rows
    assert events[-1].kind == "error"
    assert said in events[-1].message
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    broken.unlink()
    resumed = run({"reward": term}, max_steps=4, resume=True)
    assert not different_weights(tmp_path / "run", tmp_path / "straight")
    assert resumed.results["tokens"] == straight.results["tokens"]
    assert resumed.results["train_loss"] == pytest.approx(straight.results["train_loss"], abs=1e-9)


def test_a_reward_that_fails_at_once_has_nothing_to_save(run: Any, failing: Any, tmp_path: Path) -> None:
    term, broken = failing
    broken.write_text("raise ValueError('no')")
    with pytest.raises(RewardError, match="nothing had trained yet"):
        run({"reward": term})
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_steps_that_were_not_reported_are_in_the_checkpoint_too(run: Any, failing: Any, tmp_path: Path) -> None:
    """Totals are counted when a step is reported: what trained since then must not be lost."""
    term, broken = failing
    straight = run({"reward": term}, output="straight", max_steps=6, log_every=3)

    def breaks(event: RunEvent) -> None:
        if event.kind == "step" and event.values["step"] == 3:
            broken.write_text("")

    code = tmp_path / "rewards.py"
    # From the third call after the step on, so that two more steps have trained.
    code.write_text(code.read_text().replace("    bad = Path", "    global calls\n    calls += 1\n    bad = Path"))
    code.write_text("calls = 0\n" + code.read_text().replace("bad.exists()", "(bad.exists() and calls > 5)"))
    with pytest.raises(RewardError, match="step 5 of 6"):
        run({"reward": term}, max_steps=6, log_every=3, observers=(breaks,))
    broken.unlink()
    resumed = run({"reward": term}, max_steps=6, log_every=3, resume=True)
    assert not different_weights(tmp_path / "run", tmp_path / "straight")
    assert resumed.results["steps"] == straight.results["steps"] == 6
    assert resumed.results["tokens"] == straight.results["tokens"]
    assert resumed.results["train_loss"] == pytest.approx(straight.results["train_loss"], abs=1e-6)


def test_a_stop_while_held_out_prompts_are_answered(run: Any, tmp_path: Path) -> None:
    """After step 2 the held-out prompts are answered; that step must not be lost."""
    options = {"max_steps": 3, "eval_every": 2, "data": {"eval": 2}}

    run(STAGE, output="straight", **options)
    with pytest.raises(Interrupted, match="step 2 of 3 is saved in"):
        run(STAGE, **stopping(2), **options)
    run(STAGE, resume=True, **options)
    assert not different_weights(tmp_path / "run", tmp_path / "straight")


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_a_stop_between_two_rollouts_goes_on_with_the_same_answers(run: Any, tmp_path: Path, stage: str) -> None:
    given = {**STAGE, "use": stage, "num_iterations": 3, "beta": 0.1}
    data = {"eval": 2}
    straight = run(given, output="straight", max_steps=5, data=data)
    with pytest.raises(Interrupted):
        run(given, max_steps=5, data=data, **stopping(1))
    assert (tmp_path / "run" / "checkpoint-2" / "rollout.safetensors").is_file()
    resumed = run(given, max_steps=5, resume=True, data=data)
    assert not different_weights(tmp_path / "run", tmp_path / "straight")
    for name in ("eval_reward_before", "eval_reward"):
        assert resumed.results[name] == straight.results[name]


def test_a_stop_while_answers_are_generated(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.plugins._trl import rollout

    given = {**STAGE, "max_new_tokens": 8}
    run(given, output="straight", max_steps=3)
    stop, real, calls = threading.Event(), rollout.generate, []

    def generate(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            stop.set()
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "generate", generate)
        with pytest.raises(Interrupted, match=r"while answers were generated; step 2 of 3 is saved in"):
            run(given, max_steps=3, stop=stop)
    run(given, max_steps=3, resume=True)
    assert not different_weights(tmp_path / "run", tmp_path / "straight")
