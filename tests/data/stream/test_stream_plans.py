"""What a configuration with a stream needs before it can be planned, and what the plan says."""

from __future__ import annotations

import json
from typing import Any

import pytest

import luthier
from luthier.core.config import parse_config
from luthier.core.errors import PlanRefused
from luthier.core.resolve.streaming import streaming_problems


def config(*, train: dict[str, Any] | None = None, **data: Any) -> Any:
    return parse_config(
        {
            "model": "tiny",
            "data": {"train": ["a.jsonl"], "streaming": True, **data},
            "train": {"max_steps": 5} | (train or {}),
        }
    )


def problems(**options: Any) -> list[tuple[str, str]]:
    return [(problem.where, f"{problem.reason} {problem.fix}") for problem in streaming_problems(config(**options))]


def test_a_stream_that_can_be_trained_on_has_no_problem() -> None:
    assert problems() == []
    assert problems(eval=[{"path": "held.jsonl", "sample": 0.5}], window=5) == []
    assert problems(streaming=False, train={"max_steps": None}, eval=0.1) == []


@pytest.mark.parametrize(
    ("options", "where", "words"),
    [
        ({"train": {"max_steps": None}}, "data.streaming", "max_steps"),
        ({"eval": 0.1}, "data.eval", "sources of their own"),
        ({"eval": 10}, "data.eval", "sources of their own"),
        ({"train_sample": 0.5}, "data.train[1].sample", "cannot be sampled"),
        ({"streaming": False, "window": 500}, "data.window", "data.streaming: true"),
    ],
)
def test_what_a_stream_cannot_have_is_a_problem(options: dict[str, Any], where: str, words: str) -> None:
    options = dict(options)
    if "train_sample" in options:
        made = parse_config(
            {
                "model": "tiny",
                "data": {"train": ["a.jsonl", {"path": "b.jsonl", "sample": options["train_sample"]}], "streaming": True},
                "train": {"max_steps": 5},
            }
        )
        found = [(problem.where, f"{problem.reason} {problem.fix}") for problem in streaming_problems(made)]
    else:
        found = problems(**options)
    assert [place for place, _ in found] == [where]
    assert words in found[0][1]


def test_all_problems_are_told_at_once(jsonl: Any, chat: Any, tiny_folder: Any, tmp_path: Any) -> None:
    rows = jsonl([chat("hi", "hello")])
    content = {
        "model": str(tiny_folder()),
        "data": {"train": [{"path": str(rows), "sample": 3}], "streaming": True, "eval": 0.5},
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(PlanRefused) as caught:
        luthier.plan(content)
    assert {problem.where for problem in caught.value.problems} == {"data.streaming", "data.eval", "data.train[0].sample"}


def test_the_plan_says_streamed(jsonl: Any, chat: Any, tiny_folder: Any, tmp_path: Any, capsys: Any) -> None:
    from luthier.cli import main

    rows = jsonl([chat("hi", "hello")] * 3)
    path = tmp_path / "run.yaml"
    content = {
        "model": str(tiny_folder()),
        "data": {"train": [str(rows)], "streaming": True},
        "train": {"max_steps": 5},
        "output": str(tmp_path / "out"),
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main(["plan", str(path)]) == 0
    assert "streamed, conversation" in capsys.readouterr().out
    plan = luthier.plan(path)
    assert plan.data[0].rows is None
    assert "stage.streams" in plan.traits


def test_a_stage_that_cannot_stream_is_refused(jsonl: Any, chat: Any, tiny_folder: Any, tmp_path: Any) -> None:
    from luthier.core.catalog import Catalog, Offer, Provider
    from luthier.core.contracts import TrainingStage
    from luthier.core.testing.surroundings import installed_catalog

    whole = installed_catalog()
    stage = TrainingStage(name="own", summary="A stage.", data_kind="conversation", run=lambda runtime, options: {})
    stages = {"own": Offer(value=stage, provider=Provider(plugin="own"))}
    catalog = Catalog(methods={**whole.methods, "stage": stages}, formats=whole.formats)
    content = {
        "model": str(tiny_folder()),
        "data": {"train": [str(jsonl([chat("hi", "hello")]))], "streaming": True},
        "train": {"max_steps": 5},
        "stage": "own",
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(PlanRefused, match=r"data.streaming: true needs stage.streams[\s\S]*leave out data.streaming"):
        luthier.plan(content, catalog=catalog)
    content["data"]["streaming"] = False  # type: ignore[index]
    assert luthier.plan(content, catalog=catalog).step("stage").method == "own"
