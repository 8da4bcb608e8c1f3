"""A function of the user's own: what it is given, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.config.schema import Choice
from luthier.core.frozen import freeze
from luthier.core.rewards import OpenTerm, RewardError, Rewards, Scored, open_rewards

NO_RUN: Any = None


def answer(text: str, row: int, reference: str | None = None) -> Scored:
    return Scored(prompt=f"p{row}", text=text, ids=[1], prompt_ids=[2], finished=True, reference=reference, row=row)


ANSWERS = [answer("a", 3, "ref"), answer("bb", 4), answer("ccc", 5)]


@pytest.fixture
def rewards(tmp_path: Path) -> Any:
    def make(code: str, name: str = "score") -> Rewards:
        path = tmp_path / "my rewards.py"
        path.write_text(code, encoding="utf-8")
        options = freeze({"path": f"{path}:{name}"})
        return open_rewards([Choice(use="function", options=options)], runtime=NO_RUN)

    return make


def test_it_is_called_with_names_and_gives_numbers(rewards: Any) -> None:
    code = (
        "def score(prompts, completions, references):\n"
        "    assert prompts == ['p3', 'p4', 'p5'] and references == ['ref', None, None]\n"
        "    return [len(text) / 2 for text in completions]\n"
    )
    assert rewards(code).score(ANSWERS).total == [0.5, 1.0, 1.5]


def test_it_may_have_dataclasses_and_another_name(rewards: Any) -> None:
    code = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Judge:\n    factor: float\n"
        "    def __call__(self, *, completions, **_):\n        return [self.factor * len(text) for text in completions]\n"
        "double = Judge(2.0)\n"
    )
    assert rewards(code, "double").score(ANSWERS).total == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("body", "said", "rows"),
    [
        (
            "raise ValueError('no such thing')",
            r"failed on rows 3, 4, 5 in .*my rewards.py, line 2: ValueError: no such",
            (3, 4, 5),
        ),
        ("import sys; sys.exit(3)", "failed on rows 3, 4, 5 in .*line 2: SystemExit: 3", (3, 4, 5)),
        ("return [1.0, float('nan'), 2.0]", r"gave nan, which is no finite number, for row 4 \('p4'\)", (4,)),
        ("return [1.0, 2.0, float('inf')]", "gave inf, .* for row 5", (5,)),
        ("return [None, 2.0, 1.0]", "gave None, .* for row 3", (3,)),
        ("return ['1.0', 2.0, 1.0]", "gave '1.0', .* for row 3", (3,)),
        ("return [1.0, 2.0]", "gave 2 numbers for 3 answers, of rows 3, 4, 5", (3, 4, 5)),
        ("return 1.0", "gave float, not a list of numbers", (3, 4, 5)),
        ("return None", "gave NoneType", (3, 4, 5)),
        ("return {3: 1.0}", "gave dict", (3, 4, 5)),
    ],
)
def test_what_is_no_list_of_finite_numbers(rewards: Any, body: str, said: str, rows: tuple[int, ...]) -> None:
    opened = rewards(f"def score(**_):\n    {body}\n")
    with pytest.raises(RewardError, match=said) as caught:
        opened.score(ANSWERS)
    assert (caught.value.term, caught.value.rows) == ("function", rows)
    assert str(caught.value).startswith("reward function: ")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_this_name\n", "line 1 failed: ModuleNotFoundError"),
        ("def score(:\n", "failed: SyntaxError"),
        ("def scores(**_): return []\n", "has no function score"),
        ("score = 3\n", "has no function score"),
    ],
)
def test_a_file_that_cannot_be_used(rewards: Any, code: str, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        rewards(code)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    choice = Choice(use="function", options=freeze({"path": f"{tmp_path}/gone.py:score"}))
    with pytest.raises(RewardError, match="there is no file"):
        open_rewards([choice], runtime=NO_RUN)


@pytest.mark.parametrize(
    "values", [np.array([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]), (1, 2, 3), [np.float32(1), 2, 3.0]]
)
def test_arrays_and_tensors_are_lists_of_numbers(values: Any) -> None:
    term = OpenTerm(name="t", weight=2.0, score=lambda answers: values)
    assert Rewards([term]).score(ANSWERS).total == [2.0, 4.0, 6.0]


def test_a_tensor_of_the_wrong_shape_is_refused() -> None:
    term = OpenTerm(name="t", weight=1.0, score=lambda answers: torch.ones(3, 1))
    with pytest.raises(RewardError, match=r"gave \[1.0\], which is no finite number"):
        Rewards([term]).score(ANSWERS)
