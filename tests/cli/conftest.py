"""Fixtures of the command-line tests: a machine that is read once, a configuration that trains in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli import main

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dtype probe is taken once for all tests, and never from the user's own cache."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path_factory.getbasetemp() / "luthier-cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve short conversations."""
    path = tmp_path / "rows.jsonl"
    turns = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}!"}]} for n in range(12)
    ]
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return path


@pytest.fixture
def write_config(tmp_path: Path, tiny_folder: Callable[..., Path], rows: Path) -> Write:
    """`write_config(stage="sft", ...)`: a configuration file over the tiny llama; a key set to None is left out."""

    def write(**changes: Any) -> Path:
        config: dict[str, Any] = {
            "model": str(tiny_folder("llama")),
            "data": {"train": [str(rows)], "max_length": 64},
            "stage": "sft",
            "adapter": {"use": "lora", "rank": 4},
            "optimizer": {"use": "adamw", "lr": 0.01},
            "train": {"batch_tokens": 128, "max_steps": 3},
            "output": str(tmp_path / "run"),
        }
        config |= changes
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
        return path

    return write


@pytest.fixture
def luthier(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`luthier("plan", path, "--json") -> (exit code, standard output, standard error)`, in this process."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
