"""Whole runs over a stream: killed and resumed to the weights of the run that was not, and what they leave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.errors import DataError, OutputError

# Trains, and kills itself in the middle of a step, as a full memory or a lost machine would.
KILLED = """
import os, signal, sys
import luthier

def watch(event):
    if event.kind == "step" and event.values["step"] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

luthier.train(sys.argv[1], observers=[watch])
"""

Setup = Callable[..., dict[str, Any]]


@pytest.fixture
def setup(jsonl: Any, chat: Any, tiny_folder: Any, tmp_path: Path) -> Setup:
    """`setup(name, data={...}, train={...})`: a configuration over 90 conversations and 40 others."""
    model = tiny_folder()
    one = jsonl([chat(f"question {n}", "answer " * (1 + n % 12)) for n in range(90)], "one.jsonl")
    two = jsonl([chat(f"other {n}", "no " * (1 + n % 7)) for n in range(40)], "two.jsonl")
    held = jsonl([chat(f"held {n}", "out " * 5) for n in range(12)], "held.jsonl")

    def make(name: str, *, data: dict[str, Any] | None = None, train: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            "model": str(model),
            "data": {
                "train": [str(one), {"path": str(two), "weight": 2}],
                "mix": "interleave",
                "eval": [str(held)],
                "max_length": 256,
                "streaming": True,
                "window": 25,
                **(data or {}),
            },
            "adapter": {"use": "lora", "rank": 4, "dropout": 0.1},
            "optimizer": {"use": "adamw", "lr": 0.01},
            "precision": "fp32",
            "train": {"max_steps": 14, "accumulation": 3, "batch_tokens": 256, "save_every": 4, **(train or {})},
            "output": str(tmp_path / name),
        }

    return make


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_that_was_killed_resumes_to_the_same_weights(setup: Setup, tmp_path: Path, packing: bool) -> None:
    import torch

    straight = luthier.train(setup("straight", data={"packing": packing}))
    killed = setup("killed", data={"packing": packing})
    (tmp_path / "killed.yaml").write_text(json.dumps(killed), encoding="utf-8")
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed.yaml"), "11"], check=False)
    assert process.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert left == ["checkpoint-4", "checkpoint-8"]
    resumed = luthier.train(killed, resume=True)

    assert resumed["resumed_from"] == "checkpoint-8"
    expected = tensors(tmp_path / "straight")
    found = tensors(tmp_path / "killed")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert [step for step, _ in losses(tmp_path / "killed")] == list(range(1, 15))
    for key in ("eval_loss", "tokens", "trained_tokens", "steps"):
        assert resumed[key] == straight[key], key
    assert resumed["data"] == straight["data"] | {"sources": resumed["data"]["sources"]}
    places = [
        json.loads((tmp_path / name / "checkpoint-12" / "progress.json").read_text()) for name in ("straight", "killed")
    ]
    assert places[0]["stream"] == places[1]["stream"]
    assert places[0]["stream"]["given"] == 12 * 3
    states = [
        json.loads((tmp_path / name / "checkpoint-12" / "trainer_state.json").read_text()) for name in ("straight", "killed")
    ]
    assert states[0]["epoch"] == states[1]["epoch"]


def test_what_a_run_leaves_says_what_became_of_the_stream(setup: Setup, tmp_path: Path) -> None:
    events: list[Any] = []
    results = luthier.train(setup("run", train={"save_every": None}), observers=[events.append])
    data = results["data"]
    assert data["held_out"] == 12
    assert data["windows"] >= 4
    rows = {source["name"].rsplit("/")[-1]: source for source in data["sources"]}
    assert {name: source["role"] for name, source in rows.items()} == {
        "one.jsonl": "train", "two.jsonl": "train", "held.jsonl": "eval"
    }  # fmt: skip
    assert sum(source["rows"] for source in rows.values()) == data["rows"] == data["kept"] + data["held_out"]
    assert results["tokens"] <= data["tokens"]
    start = next(event for event in events if event.kind == "start")
    assert start.values["rows"] is None
    steps = [event.values["epoch"] for event in events if event.kind == "step"]
    assert steps[0] is None
    # Where the first pass is over, the passes are known, and only grow.
    known = [epoch for epoch in steps if epoch is not None]
    assert known == sorted(known)
    assert known[-1] > 1
    assert (tmp_path / "run" / "training_loss.png").is_file()
    assert "windows" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_pre_training_streams_too(setup: Setup, jsonl: Any, tmp_path: Path) -> None:
    texts = jsonl([{"text": f"text {n} " * (1 + n % 20)} for n in range(60)], "texts.jsonl")
    data = {"train": [str(texts)], "eval": 0.0, "packing": True, "too_long": "split", "max_length": 64}
    results = luthier.train(setup("run", data=data) | {"stage": "pt"})
    assert results["steps"] == 14
    assert results["data"]["added"]["parts of rows that were split"] > 0


def test_calibration_sees_rows_of_the_first_window(setup: Setup) -> None:
    """CorDA takes its directions from training rows, before the first step."""
    adapter = {"use": "lora", "rank": 4, "init": "corda", "init_batches": 2}
    results = luthier.train(setup("run", train={"max_steps": 2, "save_every": None}) | {"adapter": adapter})
    assert results["steps"] == 2


def test_a_bad_row_ends_the_run_and_leaves_the_checkpoints(setup: Setup, jsonl: Any, chat: Any, tmp_path: Path) -> None:
    """Bad JSON in line 1,060, further on than the plan looks, and in the third window of 500 rows."""
    path = jsonl([chat(f"question {n}", "yes") for n in range(1200)], "long.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1059] = '{"messages": ['
    path.write_text("\n".join(lines), encoding="utf-8")
    data = {"train": [str(path)], "eval": 0.0, "window": 500}
    train = {"save_every": 1, "accumulation": 1, "max_steps": 1000, "batch_tokens": 8192}
    with pytest.raises(DataError, match=r"long.jsonl:1060: bad JSON"):
        luthier.train(setup("run", data=data, train=train))
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert len(steps) == 2
    stream = json.loads((tmp_path / "run" / f"checkpoint-{steps[1]}" / "progress.json").read_text())["stream"]
    # Everything before the third window has trained.
    assert (stream["given"], stream["window"], stream["place"]["taken"]) == (steps[1], 1, 500)


def test_other_rows_are_refused_on_resume(setup: Setup, jsonl: Any, chat: Any, tmp_path: Path) -> None:
    config = setup("run", data={"train": [str(tmp_path / "one.jsonl")]})
    luthier.train(config)
    jsonl([chat(f"question {n}", "another") for n in range(90)], "one.jsonl")
    with pytest.raises(OutputError, match="belongs to other data or other batches"):
        luthier.train(config, resume=True)


def test_a_finished_run_resumes_to_its_results(setup: Setup) -> None:
    config = setup("run", train={"save_every": 7})
    first = luthier.train(config)
    again = luthier.train(config, resume=True)
    assert again["resumed_from"] == "checkpoint-14"
    for key in ("eval_loss", "train_loss", "tokens"):
        assert again[key] == first[key], key
    assert again["data"]["rows"] == first["data"]["rows"]
