"""What a run of any stage with a language model left can be evaluated, whatever it learned from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.contracts import TrainingStage
from luthier.core.testing.surroundings import installed_catalog

ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": "the ash stands by the road"},
    "conversation": {"instruction": "say ash", "output": "ash ash"},
    "preference": {"prompt": "say ash", "chosen": "ash", "rejected": "no"},
    "unpaired": {"prompt": "say ash", "completion": "ash", "label": True},
}
# Those that learn from prompts alone generate, and have tests of their own; what they leave is the same.
STAGES = sorted(
    name
    for name, offer in installed_catalog().slot("stage").items()
    if isinstance(offer.value, TrainingStage) and offer.value.task == "causal" and offer.value.data_kind in ROWS
)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("stage", STAGES)
def test_its_run_is_measured_on_conversations(stage: str, tiny_folder: Any, tmp_path: Path) -> None:
    kind = installed_catalog().slot("stage")[stage].value.data_kind
    rows = [ROWS[kind]] * 4
    if kind == "unpaired":
        rows += [{**ROWS[kind], "completion": "no", "label": False}] * 4
    luthier.train(
        {
            "model": str(tiny_folder("llama")),
            "data": {"train": [write(tmp_path / "rows.jsonl", rows)], "max_length": 64},
            "stage": stage,
            "adapter": {"use": "lora", "rank": 4},
            "precision": "fp32",
            "train": {"max_steps": 1, "batch_tokens": 512},
            "output": str(tmp_path / "run"),
        }
    )
    asked = write(tmp_path / "asked.jsonl", [ROWS["conversation"]])
    found = luthier.evaluate(tmp_path / "run", [asked], metrics=["loss", "exact_match"], max_new_tokens=2)
    assert found.stage == stage
    # A random model of 262 tokens knows nothing: its loss is that of a guess.
    assert found.metrics["loss"] == pytest.approx(math.log(262), abs=0.7)
    assert found.metrics["exact_match"] == 0
