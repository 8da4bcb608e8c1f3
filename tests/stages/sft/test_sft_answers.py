"""Held-out answers as a metric while the model trains, and the options that ask for what is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.errors import DataError, PlanRefused
from tests.stages.running import write_rows

ALWAYS = "yes it is so"


def constant_rows(path: Path, count: int, word: str) -> str:
    """Rows that answer the same to everything: what a tiny model learns in some steps."""
    rows = [
        {"messages": [{"role": "user", "content": f"{word} {number}"}, {"role": "assistant", "content": ALWAYS}]}
        for number in range(count)
    ]
    return write_rows(path, rows)


def test_answers_become_right_and_every_report_has_the_metrics(
    config: Any, quietly: Any, read_evaluations: Any, tmp_path: Path
) -> None:
    data = {
        "train": [constant_rows(tmp_path / "train.jsonl", 24, "is")],
        "eval": [constant_rows(tmp_path / "eval.jsonl", 9, "was")],
    }
    stage = {
        "evaluate_by": ["loss", "exact_match", "rouge", "bleu"],
        "eval_samples": 5,
        "max_new_tokens": 20,
        "keep_best": "exact_match",
    }
    settings = config(stage=stage, train={"max_steps": 32, "eval_every": 8}, data=data)
    settings |= {"adapter": "full", "optimizer": {**settings["optimizer"], "lr": 0.01}}
    results = quietly(settings)
    found = read_evaluations(tmp_path / "run")
    names = ("exact_match", "rouge1", "rouge2", "rougeL", "bleu", "unfinished", "loss")
    assert [one["step"] for one in found] == [8, 16, 24, 32]
    assert all(set(names) <= one.keys() for one in found)
    assert found[-1]["exact_match"] == 1, "one answer to everything is learned in 32 steps"
    assert [found[-1][name] for name in ("rouge1", "rouge2", "rougeL", "bleu")] == pytest.approx([1, 1, 1, 100])
    assert found[-1]["unfinished"] == 0
    # The first that reached it is the best: later ones are equal, not better.
    assert results["best_step"] == next(one["step"] for one in found if one["exact_match"] == 1)
    best = next(one for one in found if one["step"] == results["best_step"])
    assert {name: results[f"eval_{name}"] for name in names} == {name: best[name] for name in names}
    assert "evaluation: 5 of 9 held-out rows are answered" in results["told"]
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "| held-out exact match (0 to 1) | 1 |" in card
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["eval_exact_match"] == 1


def test_without_the_loss_only_answers_are_measured(
    config: Any, quietly: Any, read_evaluations: Any, tmp_path: Path
) -> None:
    results = quietly(config(stage={"evaluate_by": ["exact_match"], "max_new_tokens": 4}, train={"max_steps": 1}))
    (only,) = read_evaluations(tmp_path / "run")
    assert "loss" not in only
    assert "eval_loss" not in results
    assert only["exact_match"] == 0
    assert (tmp_path / "run" / "training_loss.png").stat().st_size > 0


def test_evaluating_changes_nothing_that_is_trained(config: Any, quietly: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name, stage in (("plain", {}), ("asked", {"evaluate_by": ["loss", "exact_match"], "max_new_tokens": 4})):
        settings = config(stage=stage, train={"max_steps": 4, "eval_every": 1}, output=name)
        settings["adapter"]["dropout"] = 0.2
        quietly(settings)
    plain, asked = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "asked"))
    assert all(bool((plain[key] == asked[key]).all()) for key in plain)


def test_rows_without_room_are_said_and_all_of_them_are_an_error(config: Any, quietly: Any) -> None:
    stage = {"evaluate_by": ["exact_match"], "max_new_tokens": 510}
    with pytest.raises(DataError, match=r"no held-out row can be answered \(prompt and answer would be longer.*: 4\)"):
        quietly(config(stage=stage, train={"max_steps": 1}))


REFUSED = {
    "keep_best without held-out rows": (
        {"keep_best": "loss"},
        {"eval": 0.0},
        {},
        ["stage: sft needs rows.held_out", "set data.eval", "stage: sft needs rows.evaluated", "set train.eval_every"],
    ),
    "early_stopping with one evaluation": (
        {"early_stopping": 2},
        {},
        {},
        ["stage: sft needs rows.evaluated", "early_stopping compares several evaluations"],
    ),
    "answers without held-out rows": (
        {"evaluate_by": ["loss", "bleu"]},
        {"eval": 0.0},
        {},
        ["stage: sft needs rows.held_out", "evaluate_by: loss, bleu is measured on them"],
    ),
    "answers where all is learned": (
        {"evaluate_by": ["bleu"]},
        {"train_on": "all"},
        {},
        ["cannot be combined with rows.all_learned", "data.train_on: all", "leave out data.train_on"],
    ),
    "samples without answers": ({"eval_samples": 7}, {}, {}, ["eval_samples: no answers are generated"]),
    "length without answers": ({"max_new_tokens": 7}, {}, {}, ["max_new_tokens: no answers are generated"]),
    "nothing to evaluate by": ({"evaluate_by": []}, {}, {}, ["evaluate_by: names at least one metric"]),
    "twice": ({"evaluate_by": ["loss", "loss"]}, {}, {}, ["evaluate_by: names at least one metric, and each once"]),
    "best by what is not measured": (
        {"keep_best": "rouge1"},
        {},
        {"eval_every": 1},
        ["keep_best: compares rouge1, which evaluate_by does not measure"],
    ),
    "stopping by a loss that is not measured": (
        {"early_stopping": 1, "evaluate_by": ["bleu"]},
        {},
        {"eval_every": 1},
        ["early_stopping: compares loss, which evaluate_by does not measure"],
    ),
    "min_delta alone": ({"min_delta": 0.1}, {}, {}, ["min_delta: belongs to early_stopping"]),
    "smoothing everything": ({"label_smoothing": 1.0}, {}, {}, ["less than 1"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_would_do_nothing_are_refused_in_the_plan(config: Any, case: str) -> None:
    stage, data, train, said = REFUSED[case]
    with pytest.raises(PlanRefused) as caught:
        luthier.plan(config(stage=stage, data=data, train={"max_steps": 1, **train}))
    for text in said:
        assert text in str(caught.value)


def test_smoothing_claims_the_loss(config: Any) -> None:
    from luthier.core.profile import ArchitectureProfile
    from luthier.plugins.sft import SftConfig, declares

    profile = ArchitectureProfile(
        model_type="llama", architecture="", decoder="", layers=1, layer_classes=(), hidden_size=1, vocab_size=1
    )
    assert declares(profile, SftConfig(label_smoothing=0.1)).claims == {"loss.forward"}
    assert not declares(profile, SftConfig()).claims
