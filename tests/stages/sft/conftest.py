"""Runs of `sft` on a tiny model, small enough to look at every evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from tests.stages.running import WORDS, write_rows

Train = Callable[..., dict[str, Any]]


def conversations(path: Path, answers: dict[str, str]) -> str:
    rows = [{"messages": [_turn("user", ask), _turn("assistant", answer)]} for ask, answer in answers.items()]
    return write_rows(path, rows)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture
def config(tiny_folder: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`config(stage={...}, train={...}, data={...}, output="run")`: twelve rows that answer a tree with its own name."""
    rows = conversations(tmp_path / "rows.jsonl", {f"say {word}": f"{word} {word}" for word in WORDS})
    held_out = conversations(tmp_path / "held-out.jsonl", {f"name {word}": f"the {word}" for word in WORDS[:4]})
    model = str(tiny_folder("llama"))

    def make(
        *, stage: dict[str, Any], train: dict[str, Any], data: dict[str, Any] | None = None, output: str = "run"
    ) -> dict[str, Any]:
        return {
            "model": model,
            "data": {"train": [rows], "eval": [held_out], "max_length": 64, **(data or {})},
            "stage": {"use": "sft", **stage},
            "adapter": {"use": "lora", "rank": 8},
            "optimizer": {"use": "adamw", "lr": 0.02, "schedule": "constant", "warmup": 0},
            "precision": "fp32",
            "patches": [],
            "train": {"batch_tokens": 512, "epochs": 1000, "seed": 1, **train},
            "output": str(tmp_path / output),
        }

    return make


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The "evaluate" lines of a run's metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == "evaluate"]


@pytest.fixture
def read_evaluations() -> Callable[[Path], list[dict[str, Any]]]:
    return evaluations


@pytest.fixture
def quietly() -> Train:
    """`quietly(config, **options)`: luthier.train, with what was told in `results["told"]`."""

    def train(config: dict[str, Any], **options: Any) -> dict[str, Any]:
        told: list[str] = []

        def hear(event: Any) -> None:
            if event.kind in ("notice", "warning"):
                told.append(event.message)

        observers = [hear, *options.pop("observers", ())]
        return luthier.train(config, observers=observers, **options) | {"told": told}

    return train
