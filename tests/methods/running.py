"""A whole run through `luthier.train` on a tiny model, and the same run stopped in the middle and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import luthier
from luthier.core.extensions import RunEvent

STEPS = 6


def rows(folder: Path) -> Path:
    """Sixteen short conversations of different lengths."""
    path = folder / "rows.jsonl"
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"say hello {n} times"},
                {"role": "assistant", "content": "hello " * (n % 5 + 1) + "<|note|>"},
            ]
        }
        for n in range(16)
    ]
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return path


def configuration(model: Path, folder: Path, patches: list[Any], **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model": str(model),
        "data": {"train": [str(rows(folder))], "max_length": 256},
        "stage": "sft",
        "adapter": {"use": "lora", "rank": 4},
        "optimizer": {"use": "adamw", "lr": 0.01},
        "patches": patches,
        "precision": "fp32",
        "train": {"batch_tokens": 192, "max_steps": STEPS, "save_every": 3, "keep_checkpoints": 5},
        "output": str(folder / "run"),
    }
    return config | changes


def train(config: Mapping[str, Any], *, resume: bool = False) -> tuple[dict[str, Any], list[str]]:
    """(all_results.json, every notice and warning that the user saw)."""
    said: list[str] = []

    def listen(event: RunEvent) -> None:
        if event.kind in ("notice", "warning"):
            said.append(event.message)

    results = luthier.train(luthier.load_config(config), observers=[listen], resume=resume)
    return results, said


def resumed_equals_straight(config: dict[str, Any]) -> bool:
    """Whether the weights of a run are bit for bit those of one that is stopped after three steps and resumed."""
    train(config)
    run = Path(config["output"])
    straight = weights(run)
    for name in ("checkpoint-6", "all_results.json"):
        target = run / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    for file in run.glob("*.safetensors"):
        file.unlink()
    train(config, resume=True)
    again = weights(run)
    return straight.keys() == again.keys() and all(torch.equal(straight[name], again[name]) for name in straight)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
