"""Which evaluation is the best, and when there have been enough: sequences of metrics written out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.best import BestSoFar, EarlyStopping, compare_by, take_best
from luthier.core.errors import OutputError


def fed(best: BestSoFar, values: list[float], every: int = 10) -> list[bool]:
    return [best.note(every * number, {f"eval_{best.metric}": value}) for number, value in enumerate(values, 1)]


def test_the_lowest_loss_is_the_best_and_the_first_of_equals() -> None:
    best = BestSoFar("loss", keep=True)
    assert fed(best, [3.0, 2.0, 2.5, 2.0, 1.9]) == [True, True, False, False, True]
    assert (best.step, best.checkpoint, best.ended) == (50, "checkpoint-50", "")


def test_of_any_other_metric_the_highest() -> None:
    best = BestSoFar("rougeL", keep=True)
    assert fed(best, [0.1, 0.3, 0.2]) == [True, True, False]
    assert best.metrics == {"eval_rougeL": 0.3}


@pytest.mark.parametrize(
    ("values", "patience", "delta", "ends_at"),
    [
        ([3.0, 2.0, 2.1, 2.2, 1.0], 2, 0.0, 4),
        ([3.0, 2.0, 2.1, 1.9, 2.2, 2.3], 2, 0.0, 6),
        ([3.0, 2.95, 2.9, 2.85, 2.8], 2, 0.2, 3),  # each a little better, none by more than 0.2
        ([3.0, 2.9, 2.75, 2.7, 2.65], 2, 0.2, 5),  # 2.75 is 0.25 below the mark that 3.0 set
        ([3.0, 2.0, 1.0], 1, 0.0, None),
        ([math.nan, math.nan], 2, 0.0, 2),
        ([3.0, math.nan, 2.0, math.nan, math.inf], 2, 0.0, 5),
    ],
)
def test_it_ends_after_so_many_that_are_not_better(
    values: list[float], patience: int, delta: float, ends_at: int | None
) -> None:
    best = BestSoFar("loss", keep=False, patience=patience, min_delta=delta)
    ended = None
    for number, value in enumerate(values, 1):
        best.note(number, {"eval_loss": value})
        if best.ended and ended is None:
            ended = number
    assert ended == ends_at


def test_the_best_is_kept_though_it_is_better_by_less_than_min_delta() -> None:
    best = BestSoFar("loss", keep=True, patience=2, min_delta=0.5)
    assert fed(best, [3.0, 2.9, 2.8]) == [True, True, True]
    assert best.ended == "2 evaluations in a row did not better loss by more than 0.5: the best is 2.8 at step 30"


def test_an_evaluation_counts_once() -> None:
    best = BestSoFar("loss", keep=True, patience=1)
    assert best.note(10, {"eval_loss": 2.0})
    assert not best.note(10, {"eval_loss": 2.0})
    assert best.ended == ""


def test_it_goes_on_from_its_state(tmp_path: Path) -> None:
    whole = BestSoFar("loss", keep=True, patience=3)
    fed(whole, [3.0, 2.0, 2.5, 2.4, 2.3])
    first, second = BestSoFar("loss", keep=True, patience=3), BestSoFar("loss", keep=True, patience=3)
    fed(first, [3.0, 2.0, 2.5])
    (tmp_path / "checkpoint-20").mkdir()
    second.restore(first.state(), tmp_path)
    for step, value in ((40, 2.4), (50, 2.3)):
        second.note(step, {"eval_loss": value})
    assert second.state() == whole.state()
    assert second.ended == whole.ended != ""


def test_a_best_checkpoint_that_is_gone_is_an_error(tmp_path: Path) -> None:
    first, second = BestSoFar("loss", keep=True), BestSoFar("loss", keep=True)
    fed(first, [3.0])
    with pytest.raises(OutputError, match="checkpoint-10 is not there"):
        second.restore(first.state(), tmp_path)


def test_without_a_number_the_last_weights_stay_and_it_is_said() -> None:
    best, told = BestSoFar("loss", keep=True), []
    fed(best, [math.nan, math.inf])
    trainer: Any = SimpleNamespace(best=best, runtime=SimpleNamespace(notice=told.append))
    assert take_best(trainer) == {}
    assert told == ["no evaluation gave a number for loss: the weights of the last step are saved"]


def test_what_options_ask_for() -> None:
    assert compare_by(None, EarlyStopping()) is None
    watched = compare_by(None, EarlyStopping(early_stopping=2, min_delta=0.1))
    assert watched is not None
    assert (watched.metric, watched.keep, watched.patience, watched.min_delta) == ("loss", False, 2, 0.1)
    kept = compare_by("bleu", EarlyStopping())
    assert kept is not None
    assert (kept.metric, kept.keep, kept.patience) == ("bleu", True, None)
    with pytest.raises(ValueError, match="min_delta"):
        EarlyStopping(min_delta=0.1)
