"""What goes wrong is said with the row, and nothing that was trained is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import ConfigError, DataError, LuthierError, OutOfMemoryError, PlanRefused
from luthier.core.rewards import RewardError

FAILING = """
calls = 0


def score(completions, prompts, **rest):
    global calls
    calls += 1
    if calls == 3:
        {what}
    return [float(len(text)) for text in completions]
"""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raise KeyError('colour')", r"KeyError[\s\S]*colour|colour"),
        ("return [float('nan')] * len(completions)", "nan"),
        ("return [1.0]", "1 number"),
        ("return None", "NoneType"),
    ],
)
def test_a_reward_that_fails_stops_with_a_checkpoint(what: str, words: str, run_of: Any) -> None:
    path = run_of.folder / "rewards.py"
    path.write_text(FAILING.format(what=what))
    options = {"stage": {"reward": {"use": "function", "path": f"{path}:score"}}}
    with pytest.raises(RewardError, match=words) as caught:
        run_of(**options)
    assert caught.value.rows
    assert "row" in str(caught.value)
    assert [path.name for path in sorted(Path(run_of.folder / "run").glob("checkpoint-*"))] == ["checkpoint-2"]
    assert not (run_of.folder / "run" / "all_results.json").exists()
    # Mended, it goes on with the step that failed, and ends where it would have ended.
    path.write_text(FAILING.format(what="pass"))
    run_of(resume=True, **options)
    run_of(output=str(run_of.folder / "straight"), **options)
    lines = [
        [json.loads(line)["reward"] for line in (run_of.folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "straight")
    ]
    assert lines[0] == lines[1]


def test_a_reward_that_fails_at_once_leaves_a_checkpoint_of_the_start(run_of: Any) -> None:
    path = run_of.folder / "rewards.py"
    path.write_text(FAILING.format(what="raise ValueError('no')").replace("calls == 3", "calls == 1"))
    with pytest.raises(RewardError, match="no"):
        run_of(stage={"reward": {"use": "function", "path": f"{path}:score"}})
    assert (run_of.folder / "run" / "checkpoint-0" / "adapter_model.safetensors").is_file()


def test_answers_that_never_end_are_said_once_and_counted(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core import generation

    monkeypatch.setattr(generation, "cut", lambda tokens, ends: generation.Answer(ids=list(tokens), finished=False))
    results = run_of(stage={"missing_eos_penalty": 2.0, "reward": {"use": "length", "max_tokens": 50}})
    warnings = [text for text in run_of.said("warning") if "ended within max_new_tokens" in text]
    assert len(warnings) == 1
    assert results["endless_steps"] == 4
    assert results["finished"] == 0
    assert results["score"] == pytest.approx(results["reward"] - 2.0)


def test_the_penalty_is_taken_from_those_alone_that_did_not_end(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core import generation

    def every_other(tokens: Any, ends: Any) -> Any:
        every_other.count += 1  # type: ignore[attr-defined]
        return generation.Answer(ids=list(tokens)[:3], finished=every_other.count % 2 == 0)  # type: ignore[attr-defined]

    every_other.count = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(generation, "cut", every_other)
    results = run_of(stage={"missing_eos_penalty": 1.0, "reward": {"use": "length", "max_tokens": 50}})
    assert results["score"] == pytest.approx(results["reward"] - 0.5)


def test_a_prompt_that_leaves_no_room_is_named(run_of: Any) -> None:
    rows = run_of.folder / "prompts.jsonl"
    rows.write_text(json.dumps({"prompt": "short"}) + "\n" + json.dumps({"prompt": "x" * 480}) + "\n")
    data = {"train": [str(rows)], "max_length": 510}
    with pytest.raises(DataError, match=r"prompt 1 has \d+ tokens[\s\S]*data.max_length to 448"):
        run_of(data=data, stage={"max_new_tokens": 64, "batch": 2})
    # Longer than a row may be: left out and counted by the data worker.
    results = run_of(data=data | {"max_length": 100}, stage={"batch": 2}, output=str(run_of.folder / "other"))
    assert results["data"]["dropped"]


def test_a_prompt_longer_than_a_batch_is_generated_by_itself_and_said(run_of: Any) -> None:
    run_of(train={"batch_tokens": 16, "max_steps": 1})
    assert any("longer than train.batch_tokens" in text for text in run_of.said("warning"))


def test_an_empty_prompt_is_refused_with_its_row(run_of: Any) -> None:
    rows = run_of.folder / "prompts.jsonl"
    rows.write_text('{"prompt": "fine"}\n{"prompt": ""}\n')
    with pytest.raises(DataError, match=r"prompts.jsonl[\s\S]*2|prompts.jsonl:2"):
        run_of()


def test_a_reference_that_a_reward_needs_is_missed_before_anything_trains(run_of: Any) -> None:
    rows = run_of.folder / "prompts.jsonl"
    rows.write_text('{"prompt": "6 times 7?", "answer": 42}\n' * 5 + '{"prompt": "and 7 times 7?"}\n')
    with pytest.raises(DataError, match=r"1 of 6 prompts have no reference.*row 5 \('and 7 times 7\?'\)"):
        run_of(stage={"reward": "exact_match", "batch": 2}, train={"max_steps": 1})


def test_rows_of_another_kind_are_refused(run_of: Any) -> None:
    rows = run_of.folder / "texts.jsonl"
    rows.write_text('{"text": "only a text"}\n' * 3)
    with pytest.raises(PlanRefused, match="prompt"):
        run_of(data={"train": [str(rows)]})


def test_accumulation_is_refused(run_of: Any) -> None:
    with pytest.raises(ConfigError, match="accumulation"):
        run_of(train={"accumulation": 2})


def test_a_loss_that_is_no_number_is_not_saved(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.plugins.ppo import updates

    true = updates.policy_loss

    def broken(logprobs: Any, *rest: Any) -> Any:
        found = true(logprobs, *rest)
        return type(found)(found.loss * float("nan"), found.clipped, found.kl)

    monkeypatch.setattr(updates, "policy_loss", broken)
    with pytest.raises(LuthierError, match="loss of step 1 is nan"):
        run_of(train={"save_every": 1})
    assert not list((run_of.folder / "run").glob("checkpoint-*"))
    assert not (run_of.folder / "run" / "adapter_model.safetensors").exists()


def test_out_of_memory_is_told_with_the_prediction(run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.plugins.ppo import stage

    def lacking(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(stage, "collect", lacking)
    with pytest.raises(OutOfMemoryError, match=r"in step 1: [\d.]+ GiB were in use at the most, [\d.]+ GiB were predicted"):
        run_of()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward": []}, "reward is empty"),
        ({"reward": {"use": "lenght"}}, "did you mean `length`"),
        ({"min_new_tokens": 9}, "above max_new_tokens"),
        ({"batch": 1}, "cannot be cut into 2 parts"),
        ({"kl": {"coef": 0}}, "cannot adapt"),
        ({"kl": {"adaptive": False, "target": 3}}, "target belongs to adaptive"),
        ({"reward": {"use": "function", "path": "nowhere.py:score"}}, "no file"),
        ({"reward": {"use": "run", "path": "nowhere"}}, "no folder of a run"),
        ({"reference": "precomputed"}, "reference"),
        ({"value_adapter": True, "adapter": "full"}, "value_adapter"),
        ({"reference": "disabled", "adapter": "full"}, "reference"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str, run_of: Any) -> None:
    changes = {"adapter": options.pop("adapter")} if "adapter" in options else {}
    with pytest.raises(PlanRefused, match=words):
        run_of(stage=options, **changes)


def test_noise_on_the_embeddings_is_refused_and_dropout_is_said_to_be_off(run_of: Any) -> None:
    with pytest.raises(PlanRefused, match=r"embeddings\.noise"):
        run_of(patches=["neftune"])
    run_of(adapter={"use": "lora", "rank": 4, "dropout": 0.25}, train={"max_steps": 1})
    assert any("dropout (up to 0.25" in text for text in run_of.said("notice"))


def test_layerwise_optimizers_are_refused(run_of: Any) -> None:
    with pytest.raises(PlanRefused, match=r"optimizer\.layerwise"):
        run_of(adapter="full", optimizer={"use": "galore", "rank": 4, "layerwise": True})
