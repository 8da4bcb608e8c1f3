"""Whole runs of `cpo`, `simpo`, `orpo` and `kto`: they learn, go on bit for bit, and refuse what they cannot learn from."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import DataError, PlanRefused
from tests.stages.running import goes_on_bit_for_bit, preferences, rated

STAGES = ("cpo", "simpo", "orpo", "kto")
STEPS = 6


def rows_of(stage: str, count: int) -> list[dict[str, Any]]:
    """Rows of the kind that a stage learns from."""
    return (rated if stage == "kto" else preferences)(count)


@pytest.mark.parametrize("stage", STAGES)
def test_it_learns_what_is_preferred(stage: str, bench_of: Any) -> None:
    """Which of two answers is the better one stands in the prompt; margin and accuracy are of rows that it never saw."""
    ran = bench_of(stage).run(
        rows=rows_of(stage, 96),
        data={"eval": 24},
        adapter={"use": "lora", "rank": 16},
        train={"max_steps": 30, "batch_tokens": 512, "eval_every": 10},
    )
    told = ran.told("evaluate")
    # Without a reference the rows are measured before the first step too.
    assert [one["step"] for one in told] == ([10, 20, 30] if stage == "kto" else [0, 10, 20, 30])
    assert told[-1]["margin"] > told[0]["margin"]
    assert told[-1]["margin"] > 0
    assert told[-1]["accuracy"] > 0.9
    assert told[-1]["loss"] < told[0]["loss"]
    assert ran.results["eval_rows"] == 24
    for name in ("loss", "margin", "accuracy"):
        assert ran.results[f"eval_{name}"] == told[-1][name]
    assert {"margin", "accuracy"} <= ran.told("step")[-1].keys()


@pytest.mark.parametrize(
    ("stage", "options", "adapter"),
    [
        ("cpo", {}, {"use": "lora", "rank": 4, "dropout": 0.1}),
        ("simpo", {"likelihood": 0.2}, {"use": "full"}),
        ("orpo", {}, {"use": "lora", "rank": 4}),
        ("kto", {"reference": "disabled"}, {"use": "lora", "rank": 4, "dropout": 0.1}),
        ("kto", {"reference": "copied"}, {"use": "lora", "rank": 4, "init": "pissa"}),
        ("kto", {"reference": "precomputed"}, {"use": "lora", "rank": 4}),
        ("kto", {"reference": "model"}, {"use": "full"}),
    ],
    ids=["cpo", "simpo", "orpo", "disabled", "copied", "precomputed", "model"],
)
def test_a_stopped_run_goes_on_bit_for_bit(stage: str, options: Any, adapter: Any, bench_of: Any) -> None:
    """Also the reference of the second half, and the estimate of the divergence, are those of the first."""
    sections: dict[str, Any] = {
        "rows": rows_of(stage, 16),
        "adapter": adapter,
        "data": {"eval": 4},
        "train": {"max_steps": STEPS, "accumulation": 2, "batch_tokens": 128},
        "stage": {"use": stage, **options},
    }
    goes_on_bit_for_bit(bench_of(stage), half=STEPS // 2, **sections)


@pytest.mark.parametrize(
    ("adapter", "ways"),
    [
        ({"use": "lora", "rank": 4, "dropout": 0.1}, ("disabled", "copied", "precomputed", "model")),
        ({"use": "full"}, ("precomputed", "model")),
    ],
    ids=["lora", "full"],
)
def test_every_way_of_the_reference_gives_the_same_run(adapter: Any, ways: Any, bench_of: Any) -> None:
    """Over two epochs, whose steps pair prompts with other answers each time."""
    bench, rows = bench_of("kto"), rows_of("kto", 12)
    runs = {
        how: bench.run(
            rows=rows,
            output=how,
            adapter=adapter,
            data={"eval": 5},
            train={"epochs": 2, "batch_tokens": 256, "accumulation": 2},
            stage={"use": "kto", "reference": how, "beta": 0.3},
        )
        for how in ways
    }
    first = runs.pop(ways[0])
    assert first.plan.step("stage").reference == ways[0]
    assert any(step["kl"] > 0 for step in first.told("step"))
    for how, ran in runs.items():
        assert ran.plan.step("stage").reference == how
        assert ran.losses == pytest.approx(first.losses, rel=1e-4)
        for name in ("eval_loss", "eval_margin", "eval_kl"):
            assert ran.results[name] == pytest.approx(first.results[name], rel=1e-3, abs=1e-6), f"{name} of {how}"


def test_the_plan_says_what_is_experimental(bench_of: Any) -> None:
    for stage in ("cpo", "simpo", "orpo"):
        ran = bench_of(stage).run(output=stage, train={"max_steps": 1})
        assert any("TRL calls experimental" in warning for warning in ran.plan.warnings)


@pytest.mark.parametrize("stage", STAGES)
def test_rows_of_another_kind_are_refused(stage: str, bench_of: Any) -> None:
    rows = rows_of("cpo" if stage == "kto" else "kto", 6)
    with pytest.raises(PlanRefused, match="unpaired rows" if stage == "kto" else "preference rows"):
        bench_of(stage).run(rows=rows)


@pytest.mark.parametrize(("kept", "word"), [(True, "good"), (False, "bad")])
def test_ratings_that_are_all_the_same_are_refused(kept: bool, word: str, bench_of: Any) -> None:
    rows = [row for row in rated(12) if row["label"] is kept]
    with pytest.raises(DataError, match=f"all {len(rows)} rows to train on are rated {word}") as caught:
        bench_of("kto").run(rows=rows)
    assert caught.value.where == "data.train"
    assert caught.value.fix


def test_weights_that_leave_one_kind_far_behind_are_told(bench_of: Any) -> None:
    """12 good and 4 bad rows weigh 3 to 1; with a third of the weight for the good ones they weigh the same."""
    rows = rated(12)
    rows = [row for row in rows if row["label"]] + [row for row in rows if not row["label"]][:4]
    bench = bench_of("kto")
    ran = bench.run(rows=rows, train={"max_steps": 1})
    (warning,) = [text for text in ran.said("warning") if "weighted" in text]
    assert "12 good and 4 bad rows" in warning
    assert "3 to 1" in warning
    assert "desirable_weight: 0.333" in warning
    ran = bench.run(rows=rows, output="even", train={"max_steps": 1}, stage={"use": "kto", "desirable_weight": 1 / 3})
    assert not [text for text in ran.said("warning") if "weighted" in text]


def test_mismatched_answers_that_are_cut_are_told_once(bench_of: Any) -> None:
    """A long prompt with another row's long answer goes beyond `max_length`, which neither row does."""
    long = [
        {"prompt": "a" * 60, "completion": "b", "label": True},
        {"prompt": "c", "completion": "d" * 60, "label": False},
    ]
    ran = bench_of("kto").run(rows=long * 2, data={"max_length": 90}, train={"epochs": 2, "batch_tokens": 512})
    told = [text for text in ran.said("notice") if "lose its end" in text]
    assert len(told) == 1
    assert "data.max_length (90)" in told[0]


@pytest.mark.parametrize(
    ("stage", "options", "says"),
    [
        ("cpo", {"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing belongs to loss sigmoid"),
        ("cpo", {"beta": 0}, "beta"),
        ("simpo", {"loss": "ipo"}, "loss"),
        ("orpo", {"beta": -1}, "beta"),
        ("kto", {"desirable_weight": 0}, "desirable_weight"),
    ],
)
def test_options_that_cannot_be(stage: str, options: Any, says: str, bench_of: Any) -> None:
    with pytest.raises(PlanRefused, match=says):
        bench_of(stage).run(stage={"use": stage, **options})
