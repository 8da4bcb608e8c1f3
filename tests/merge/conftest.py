"""Finished runs of a few steps, made through the front door, to be merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {"instruction": f"Say the word number {index}.", "output": f"Here it is: word{index} and word{index + 1}."}
    for index in range(8)
]
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mixtral": {"num_local_experts": 4},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
}
Finish = Callable[..., Path]


@pytest.fixture
def finish(tiny_folder: Callable[..., Path], tmp_path: Path) -> Finish:
    """`finish("llama", adapter={...}, patches=[...], **config) -> output folder` of four steps at a high rate."""
    import luthier

    def run(model_type: str, *, output: str = "run", model: Path | None = None, **sections: Any) -> Path:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        folder = model or tiny_folder(model_type, **SMALL.get(model_type, {}))
        config: dict[str, Any] = {
            "model": str(folder),
            "data": {"train": [str(data)], "max_length": 200},
            "stage": "sft",
            "patches": [],
            "optimizer": {"use": "adamw", "lr": 2e-2, "schedule": "constant", "warmup": 0},
            "precision": "fp32",
            "train": {"max_steps": 4, "batch_tokens": 512},
            "output": str(tmp_path / output),
        }
        luthier.train(luthier.load_config(config | sections))
        return tmp_path / output

    return run


@pytest.fixture
def text_ids(tiny_tokenizer: Any) -> Any:
    """Token ids of a sentence that no run has seen, of shape (1, T)."""
    return tiny_tokenizer("An unseen sentence, for comparing logits: 1, 2, 3.", return_tensors="pt")["input_ids"]
