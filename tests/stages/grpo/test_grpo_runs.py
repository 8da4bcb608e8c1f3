"""Whole runs: what is told, prompts that cannot be used, the reference, held-out prompts, options that would do nothing."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import DataError, LuthierError, PlanRefused
from tests.stages.running import different_weights

REWARD = [{"use": "length", "max_tokens": 3}, {"use": "regex", "pattern": "[a-m]", "weight": 2}]


def test_what_a_step_tells(run: Any) -> None:
    ran = run({"reward": REWARD, "beta": 0.1}, data={"eval": 2}, adapter="lora", eval_every=1)
    first, second = ran.told("step")
    assert first["reward"] == pytest.approx(first["reward_length"] + 2 * first["reward_regex"], abs=1e-6)
    assert {"reward_std", "reward_length_std", "entropy", "kl", "clip_fraction", "finished", "answer_tokens"} <= set(first)
    assert first["kl"] == pytest.approx(0, abs=1e-7)  # the policy is still its own reference
    assert second["kl"] > 0
    assert first["clip_fraction"] == 0
    assert 1 <= first["answer_tokens"] <= 8
    assert first["trained_tokens_per_second"] < first["tokens_per_second"]
    held = ran.told("evaluate")
    assert [one["step"] for one in held] == [0, 1, 2]
    assert ran.results["eval_reward_before"] == held[0]["reward"]
    assert held[0]["reward"] == pytest.approx(held[0]["reward_length"] + 2 * held[0]["reward_regex"])
    assert ran.results["eval_reward"] == held[-1]["reward"]
    assert held[0]["rows"] == 2


def test_tokens_are_those_of_prompts_and_answers(run: Any) -> None:
    ran = run({"reward": REWARD}, max_steps=1)
    answers = round(ran.told("step")[0]["answer_tokens"] * 8)
    assert ran.results["trained_tokens"] == answers
    assert ran.results["tokens"] > answers


def test_most_answers_do_not_end(run: Any) -> None:
    warnings = run({"reward": REWARD}).said("warning")
    (said,) = [text for text in warnings if "did not end" in text]
    assert "of 8 answers did not end within max_new_tokens (8)" in said


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_every_way_to_the_reference_is_the_same(run: Any, stage: str) -> None:
    told = {}
    for way in ("auto", "disabled", "copied", "model"):
        given = {"use": stage, "reward": REWARD, "beta": 0.5, "reference": way, "num_iterations": 2}
        ran = run(given, output=way, adapter="lora", max_steps=4, lr=1e-2)
        told[way] = [(one["loss"], one["grad_norm"], one.get("kl")) for one in ran.told("step")]
    assert told["auto"] == told["disabled"]
    for way in ("copied", "model"):
        for one, other in zip(told[way], told["disabled"], strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert told["auto"][2][2] != 0


def test_without_a_kl_term_there_is_no_reference(run: Any) -> None:
    def look(runtime: Any, config: Any) -> dict[str, float]:
        assert runtime.plan.step("stage").reference is None
        return {}

    run({"reward": REWARD}, body=look)


def test_prompts_that_leave_no_room_are_left_out(run: Any, tiny_folder: Any) -> None:
    model = tiny_folder("llama", max_position_embeddings=48)
    rows = [{"prompt": "ash"}, {"prompt": "a" * 45}, {"prompt": "elm"}]
    ran = run({"reward": REWARD, "max_new_tokens": 8}, model=model, rows=rows)
    (said,) = [text for text in ran.said("warning") if "left out" in text]
    assert said.startswith("1 of 3 prompts to train on left out")
    assert ran.told("start")[0]["rows"] == 2
    with pytest.raises(DataError, match="none of the 3 prompts"):
        run({"reward": REWARD, "max_new_tokens": 47}, model=model, rows=rows, output="other")
    with pytest.raises(PlanRefused, match="leave no room for a prompt"):
        run({"reward": REWARD, "max_new_tokens": 48}, model=model, rows=rows, output="third")


@pytest.mark.parametrize("use", ["grpo", "rloo"])
def test_answers_that_were_all_cut_teach_nothing(run: Any, tiny_folder: Any, use: str) -> None:
    """No token of any micro-batch counts: steps are done, and leave the weights as they were."""
    model = tiny_folder("llama")
    ran = run({"use": use, "reward": REWARD, "mask_truncated": True, "max_new_tokens": 2}, model=model)
    assert [step["finished"] for step in ran.told("step")] == [0, 0]
    assert [step["loss"] for step in ran.told("step")] == pytest.approx([0, 0], abs=1e-6)
    assert not different_weights(ran.folder, model)


def test_a_reward_that_needs_references(run: Any) -> None:
    rows = [{"prompt": "6 times 7?", "answer": 42}, {"prompt": "and 7 times 7?"}]
    with pytest.raises(DataError, match=r"1 of 2 prompts have no reference.*row 1 \('and 7 times 7\?'\)"):
        run({"reward": "exact_match"}, rows=rows)
    ran = run({"reward": "exact_match"}, rows=rows[:1], output="other", max_steps=1)
    assert ran.told("step")[0]["reward"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reference": "model"}, "reference: model has no effect with beta 0"),
        ({"use": "rloo", "beta": 0, "reference": "copied"}, "has no effect with beta 0"),
        ({"epsilon": 0.1}, "epsilon and epsilon_high have no effect"),
        ({"epsilon_high": 0.28}, "epsilon and epsilon_high have no effect"),
        ({"num_generations": 1}, "at least 2"),
        ({"temperature": 0}, "greater than 0"),
        ({"loss": "dapo"}, "did you mean `loss_type`"),
    ],
)
def test_options_that_would_do_nothing_or_cannot_be(run: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanRefused, match=said):
        run({"reward": REWARD, **options})


def test_accumulation_is_not_the_users(run: Any) -> None:
    with pytest.raises(LuthierError, match="prompts_per_step"):
        run({"reward": REWARD}, accumulation=2)


def test_a_reference_that_the_adapter_does_not_have(run: Any) -> None:
    with pytest.raises(PlanRefused, match="needs as its reference"):
        run({"reward": REWARD, "beta": 0.1, "reference": "disabled"}, adapter="full")
