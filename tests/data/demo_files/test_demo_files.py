"""LLaMA-Factory's demo files, where they are at hand: every one of them is looked at, and trains the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier

DEMO = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DEMO.is_dir(), reason="the demo files are not here")

# file, rows in it, stage, what the source says beside the path, what else `data` says
FILES = [
    pytest.param("alpaca_en_demo.json", 999, "sft", {}, {}, id="alpaca"),
    pytest.param("identity.json", 91, "sft", {}, {}, id="identity"),
    pytest.param("glaive_toolcall_en_demo.json", 300, "sft", {}, {"template": "qwen2.5"}, id="tool calls"),
    pytest.param("dpo_en_demo.json", 300, "sft", {"kind": "conversation"}, {}, id="chosen answers"),
    pytest.param("c4_demo.jsonl", 300, "pt", {}, {"too_long": "split"}, id="c4"),
    pytest.param("wiki_demo.txt", 30, "pt", {}, {"too_long": "split"}, id="wiki"),
]


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """`config(source, stage, **data)`: a run of two steps of the tiny llama, whose byte tokens make rows long."""

    def make(source: dict[str, Any], stage: str, **data: Any) -> dict[str, Any]:
        return {
            "model": str(tiny_folder("llama", max_position_embeddings=16384)),
            "data": {"train": [source], "max_length": 4096, "workers": 1, **data},
            "stage": stage,
            "adapter": {"use": "lora", "rank": 2},
            "optimizer": {"use": "adamw", "lr": 0.01},
            "train": {"max_steps": 2, "batch_tokens": 4096},
            "output": str(tmp_path / "run"),
        }

    return make


@pytest.mark.parametrize(("name", "rows", "stage", "source", "data"), FILES)
def test_it_is_inspected_and_trains(
    name: str, rows: int, stage: str, source: dict[str, Any], data: dict[str, Any], config: Callable[..., Any]
) -> None:
    settings = config({"path": str(DEMO / name), **source}, stage, **data)
    found = luthier.inspect_data(settings, rows=2)
    assert found.report.rows == rows
    assert len(found.rows) == 2
    assert all(any(run.trained for run in sequence.runs) for row in found.rows for sequence in row.sequences)
    results = luthier.train(settings)
    assert results["data"]["rows"] == rows
    assert results["data"]["sources"][0]["cached"], "what inspect tokenised is what the run takes"
    assert 0 < results["train_loss"] < 10


@pytest.mark.parametrize(
    ("entry", "stage", "data"),
    [
        ("identity", "sft", {}),
        ("alpaca_en_demo", "sft", {}),
        ("glaive_toolcall_en_demo", "sft", {"template": "qwen2.5"}),
        ("c4_demo", "pt", {"too_long": "split"}),
        ("wiki_demo", "pt", {"too_long": "split"}),
    ],
)
def test_entries_of_dataset_info(entry: str, stage: str, data: dict[str, Any], config: Callable[..., Any]) -> None:
    settings = config({"dataset": entry, "rows": 20}, stage, dataset_info=str(DEMO), **data)
    found = luthier.inspect_data(settings)
    assert 0 < found.report.rows <= 20


def test_the_ranking_entry_gives_pairs(config: Callable[..., Any]) -> None:
    settings = config({"dataset": "dpo_en_demo", "kind": "conversation", "rows": 20}, "sft", dataset_info=str(DEMO))
    assert luthier.inspect_data(settings).report.sources[0].format == "ranking"
