"""A reward run evaluated on preferences: its scores are those of transformers' own class, and other data is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.core.errors import ConfigError, DataError

PAIRS = [
    {"prompt": f"say {word}", "chosen": f"{word}!", "rejected": f"never say {word} again"}
    for word in ("ash", "elm", "fir", "oak", "yew", "pine")
]


@pytest.fixture(scope="module")
def reward_run(tiny_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    luthier.train(
        {
            "model": str(tiny_folder("llama")),
            "data": {"train": [str(folder / "pairs.jsonl")], "max_length": 64},
            "stage": "rm",
            "adapter": {"use": "lora", "rank": 4},
            "optimizer": {"use": "adamw", "lr": 0.01},
            "precision": "fp32",
            "train": {"batch_tokens": 256, "max_steps": 4},
            "output": str(folder / "run"),
        }
    )
    return folder / "run"


def test_scores_are_those_of_the_class_that_loads_it(reward_run: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pairs = reward_run.parent / "pairs.jsonl"
    found = luthier.evaluate(reward_run, [pairs], predictions=tmp_path / "rows.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(reward_run)
    base = json.loads((reward_run / "plan.json").read_text())["model"]["path"]
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = PeftModel.from_pretrained(model, str(reward_run)).eval()
    margins = []
    for pair in PAIRS:
        scores = []
        for answer in (pair["chosen"], pair["rejected"]):
            turns = [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": answer}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            with torch.no_grad():
                ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
                scores.append(float(model(input_ids=ids).logits[0, 0]))
        margins.append(scores[0] - scores[1])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["margin"] for row in rows] == pytest.approx(margins, rel=1e-3, abs=1e-5)
    assert found.metrics == {
        "accuracy": sum(margin > 0 for margin in margins) / len(PAIRS),
        "margin": pytest.approx(sum(margins) / len(PAIRS), rel=1e-3, abs=1e-5),
        "longer": 0.0,
    }


def test_it_scores_nothing_but_pairs_and_has_no_base(reward_run: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "say ash", "output": "ash"}) + "\n")
    with pytest.raises(DataError, match="scores pairs of answers, and these rows hold conversation data"):
        luthier.evaluate(reward_run, [rows])
    pairs = reward_run.parent / "pairs.jsonl"
    with pytest.raises(ConfigError, match="the head of a rm run is new"):
        luthier.evaluate(reward_run, [pairs], against="base")
    base = json.loads((reward_run / "plan.json").read_text())["model"]["path"]
    with pytest.raises(ConfigError, match="the two cannot be compared"):
        luthier.evaluate(reward_run, [pairs], against=base)


def test_a_merged_reward_run_scores_as_before(reward_run: Path, tmp_path: Path) -> None:
    """A folder like any other model, of which the configuration says what its head is."""
    luthier.merge(reward_run, tmp_path / "merged")
    pairs = reward_run.parent / "pairs.jsonl"
    merged = luthier.evaluate(tmp_path / "merged", [pairs], against=reward_run)
    assert merged.difference == pytest.approx({"accuracy": 0, "margin": 0, "longer": 0}, abs=1e-4)
    with pytest.raises(DataError, match="merged scores pairs of answers"):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps({"instruction": "say ash", "output": "ash"}) + "\n")
        luthier.evaluate(tmp_path / "merged", [rows])
