"""The same runs on a CUDA device; skipped where there is none. `make test-gpu` runs these alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli import main


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_cuda(), reason="no CUDA device")]


@pytest.fixture
def train(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """`train("name", *overrides) -> results` of twelve steps over a tiny llama on the device."""
    turns = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}!"}] for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    config = {
        "model": str(tiny_folder("llama")),
        "data": {"train": [str(tmp_path / "rows.jsonl")], "eval": 2, "max_length": 64},
        "adapter": "lora",
        "optimizer": {"use": "adamw", "lr": 0.01},
        "train": {"batch_tokens": 128, "max_steps": 12, "accumulation": 2},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))

    def run(name: str, *overrides: str) -> dict[str, Any]:
        assert main(["train", str(path), f"output={tmp_path / name}", *overrides]) == 0
        results: dict[str, Any] = json.loads((tmp_path / name / "all_results.json").read_text())
        return results

    return run


@pytest.mark.parametrize(("adapter", "precision"), [("lora", "fp32"), ("lora", "bf16"), ("full", "fp32"), ("full", "mixed")])
def test_trains_on_the_device(train: Callable[..., dict[str, Any]], tmp_path: Path, adapter: str, precision: str) -> None:
    results = train(
        "run", f"adapter={adapter}", f"precision={precision if adapter == 'lora' or precision == 'fp32' else 'mixed'}"
    )
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert plan["device"] == "cuda"
    assert losses[-1] < losses[0]
    assert results["memory"]["measured_is"] == "allocated on the device"
    assert results["memory"]["measured_peak"] > results["memory"]["predicted"]["weights"]


def test_first_loss_equals_that_of_the_cpu(train: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Before the first update nothing but rounding may differ between the devices; the CPU run does not see the device."""

    def first_loss(name: str) -> float:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return float(json.loads(lines[0])["loss"])

    train("device", "precision=fp32")
    words = ["train", str(tmp_path / "config.yaml"), f"output={tmp_path / 'host'}", "precision=fp32"]
    subprocess.run([sys.executable, "-m", "luthier", *words], check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert json.loads((tmp_path / "host" / "plan.json").read_text())["device"] == "cpu"
    assert first_loss("device") == pytest.approx(first_loss("host"), rel=1e-4)
