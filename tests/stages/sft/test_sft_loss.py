"""The loss of a fixed batch is that of TRL's own SFTTrainer on the same tokens, padded or packed, by either kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import luthier
from luthier.core.data.examples import IGNORED
from tests.stages.running import held


def trls_loss(config: dict[str, Any], folder: Any) -> float:
    """Of all training rows in one batch: TRL's collator, its loss, a plain model."""
    examples = held(config).data.train  # type: ignore[union-attr]
    rows = [
        {"input_ids": one["input_ids"].tolist(), "completion_mask": (one["labels"] != IGNORED).astype(int).tolist()}
        for one in examples
    ]
    arguments = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        max_length=None,
        gradient_checkpointing=False,
        completion_only_loss=True,
        loss_type="nll",
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(config["model"]),
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(rows))])
    items = (batch["labels"][:, 1:] != IGNORED).sum()
    trainer.model.eval()
    return float(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_of_a_step_is_trls(
    config: Callable[..., dict[str, Any]], tmp_path: Any, attention: str, packing: bool
) -> None:
    made = config(stage={}, train={"max_steps": 1, "batch_tokens": 4096}, data={"packing": packing})
    del made["data"]["eval"]
    losses: list[float] = []

    def listen(event: Any) -> None:
        if event.kind == "step":
            losses.append(float(event.values["loss"]))

    luthier.train(luthier.load_config(made | {"attention": attention}), observers=[listen])
    assert losses == [pytest.approx(trls_loss(made | {"output": str(tmp_path / "held")}, tmp_path / "trl"), abs=1e-5)]
