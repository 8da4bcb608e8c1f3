"""The real model on packed and on padded batches: one step over all rows, the same losses; and text, for perplexity."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.extensions import RunEvent

ROOT = Path(__file__).parents[2]


def train(folder: Path, said: list[str], **changes: Any) -> dict[str, Any]:
    def listen(event: RunEvent) -> None:
        if event.kind == "notice":
            said.append(event.message)

    config = {
        "model": "smollm2-135m",
        "adapter": "lora",
        "patches": [],
        "precision": "fp32",
        "train": {"batch_tokens": 768, "max_steps": 1},
        "output": str(folder),
    }
    results: dict[str, Any] = luthier.train(luthier.load_config(config | changes), observers=[listen])
    return results


@pytest.mark.slow
def test_a_packed_step_is_a_padded_one(tmp_path: Path) -> None:
    from luthier.demo.task import write_task

    rows, held_out = write_task(tmp_path)
    data = {"train": [{"path": str(rows), "rows": 10}], "eval": [{"path": str(held_out), "rows": 6}], "max_length": 128}
    said: list[str] = []
    packed = train(tmp_path / "packed", said, data=data | {"packing": True}, stage="sft")
    padded = train(tmp_path / "padded", [], data=data, stage="sft")
    assert any(text.startswith("packing: documents are kept apart") for text in said)
    assert packed["tokens"] == padded["tokens"]
    for name in ("train_loss", "eval_loss"):
        assert packed[name] == pytest.approx(padded[name], rel=1e-5)


@pytest.mark.slow
def test_text_that_it_knows_how_to_read(tmp_path: Path) -> None:
    """Plain English in the examples' own words: to the real model a word is one of some dozens, not of 49,152."""
    texts = ROOT / "examples" / "data" / "texts.jsonl"
    assert len(texts.read_text(encoding="utf-8").splitlines()) == 24
    data = {"train": [{"path": str(texts), "rows": 6}], "eval": 2, "max_length": 512, "packing": True}
    results = train(tmp_path / "text", [], data=data, stage="pt")
    assert 5 < results["eval_perplexity"] < 60
    assert results["eval_perplexity"] == pytest.approx(math.exp(results["eval_loss"]))
    report = json.loads((tmp_path / "text" / "all_results.json").read_text(encoding="utf-8"))
    assert report["eval_perplexity"] == results["eval_perplexity"]
