"""`pt` keeps its best evaluation and ends early as `sft` does, by the held-out loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.errors import PlanRefused


def config(model: Path, folder: Path, **stage: Any) -> dict[str, Any]:
    for name, words in (("train", ("ash", "elm", "fir", "oak")), ("eval", ("yew", "pine"))):
        rows = [{"text": f"the {word} stands by the road, and so it does today"} for word in words]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": str(model),
        "data": {"train": [str(folder / "train.jsonl")], "eval": [str(folder / "eval.jsonl")], "max_length": 64},
        "stage": {"use": "pt", **stage},
        "adapter": {"use": "lora", "rank": 8},
        "optimizer": {"use": "adamw", "lr": 0.05, "schedule": "constant", "warmup": 0},
        "precision": "fp32",
        "patches": [],
        "train": {"batch_tokens": 512, "epochs": 1000, "max_steps": 40, "eval_every": 2, "keep_checkpoints": 1},
        "output": str(folder / "run"),
    }


def test_the_best_weights_are_saved_and_the_run_ends_early(tiny_folder: Any, tmp_path: Path) -> None:
    results = luthier.train(config(tiny_folder("llama"), tmp_path, keep_best="loss", early_stopping=2))
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [line for line in lines if line["event"] == "evaluate"]
    best = min(found, key=lambda one: one["loss"])
    assert [one["step"] for one in found[-3:]] == [best["step"] + later for later in (0, 2, 4)]
    assert results["steps"] == best["step"] + 4 < 40
    assert results["ended_early"].startswith("2 evaluations in a row did not better loss")
    assert results["best_step"] == best["step"]
    assert (results["eval_loss"], results["eval_perplexity"]) == (best["loss"], best["perplexity"])
    # Computed anew, from what was saved.
    again = luthier.evaluate(tmp_path / "run", [tmp_path / "eval.jsonl"])
    assert again.metrics["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_a_run_cut_off_after_it_ended_early_ends_there_again(
    tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is due at every evaluation, the one that ends the run too."""
    settings = config(tiny_folder("llama"), tmp_path, keep_best="loss", early_stopping=2)
    settings["train"]["save_every"] = 2
    straight = luthier.train(settings)

    def killed(*rest: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("luthier.core.engine._save", killed)
        with pytest.raises(KeyboardInterrupt):
            luthier.train(settings | {"output": str(tmp_path / "cut")})
    resumed = luthier.train(settings | {"output": str(tmp_path / "cut")}, resume=True)
    for key in ("steps", "best_step", "eval_loss", "ended_early"):
        assert resumed[key] == straight[key], key


def test_what_it_cannot_compare_is_refused(tiny_folder: Any, tmp_path: Path) -> None:
    settings = config(tiny_folder("llama"), tmp_path, keep_best="loss")
    settings["train"]["eval_every"] = None
    with pytest.raises(PlanRefused, match=r"stage: pt needs rows\.evaluated"):
        luthier.plan(settings)
