"""The best evaluation's weights are what a run leaves; a run that gets no better ends; a resumed one knows what was best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import Interrupted
from tests.stages.running import different_weights, stopping

KEEP = {"keep_best": "loss"}
OFTEN = {"max_steps": 16, "eval_every": 2, "save_every": 3, "keep_checkpoints": 1}


def held_out_loss(run: Path, config: dict[str, Any]) -> float:
    """Of the weights that lie in `run`, by transformers and PEFT alone: mean over the held-out answers' tokens."""
    import json

    import peft
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run)
    base = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, str(run)).eval()
    total, tokens = 0.0, 0
    for line in Path(config["data"]["eval"][0]).read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        begin = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        # The template ends the turn with <eos> and a newline, which is no part of the answer.
        ids = torch.tensor([tokenizer(whole.removesuffix("\n"), add_special_tokens=False).input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, begin - 1 : -1].double()
        total += float(cross_entropy(logits, ids[0, begin:], reduction="sum"))
        tokens += ids.shape[1] - begin
    return total / tokens


def test_the_weights_of_the_best_evaluation_are_saved(
    config: Any, quietly: Any, read_evaluations: Any, tmp_path: Path
) -> None:
    settings = config(stage=KEEP, train=OFTEN)
    results = quietly(settings)
    run = tmp_path / "run"
    found = read_evaluations(run)
    assert [one["step"] for one in found] == [2, 4, 6, 8, 10, 12, 14, 16]
    best = min(found, key=lambda one: one["loss"])
    assert best["step"] < 16, "the run is to be one that gets worse again"
    assert results["best_step"] == best["step"]
    assert results["eval_loss"] == best["loss"]
    assert results["steps"] == 16
    assert held_out_loss(run, settings) == pytest.approx(best["loss"], rel=1e-5)
    # Spared, though `keep_checkpoints` is 1 and later ones were saved.
    kept = sorted(path.name for path in run.glob("checkpoint-*"))
    assert kept == sorted({f"checkpoint-{best['step']}", "checkpoint-15"})
    assert not different_weights(run, run / f"checkpoint-{best['step']}")
    assert any(f"loss was best at step {best['step']}" in text for text in results["told"])
    assert (
        f"| the best evaluation, of which these weights are, at step | {best['step']} |" in (run / "README.md").read_text()
    )


def test_it_ends_early_and_says_why(config: Any, quietly: Any, read_evaluations: Any, tmp_path: Path) -> None:
    results = quietly(config(stage={**KEEP, "early_stopping": 2}, train={**OFTEN, "max_steps": 60, "save_every": None}))
    losses = [one["loss"] for one in read_evaluations(tmp_path / "run")]
    assert min(losses) == losses[-3], "the two evaluations after the best one end the run"
    assert results["steps"] == 2 * len(losses) < 60
    assert results["best_step"] == results["steps"] - 4
    assert results["ended_early"].startswith("2 evaluations in a row did not better loss")
    assert any("the run ends early" in text for text in results["told"])


def test_a_resumed_run_knows_the_best_so_far(config: Any, quietly: Any, read_evaluations: Any, tmp_path: Path) -> None:
    straight = quietly(config(stage={**KEEP, "early_stopping": 3}, train=OFTEN, output="straight"))
    best = straight["best_step"]

    def later(event: Any) -> bool:
        return event.kind == "evaluate" and event.values["step"] == best + 2

    settings = config(stage={**KEEP, "early_stopping": 3}, train=OFTEN)
    with pytest.raises(Interrupted):
        quietly(settings, **stopping(later))
    assert f"checkpoint-{best}" in {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    resumed = quietly(settings, resume=True)
    for key in ("best_step", "eval_loss", "steps", "ended_early"):
        assert resumed[key] == straight[key], key
    assert read_evaluations(tmp_path / "run") == read_evaluations(tmp_path / "straight")
    assert not different_weights(tmp_path / "run", tmp_path / "straight")
