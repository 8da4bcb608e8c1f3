"""Small runs of the stages that learn from pairs without a reference, and of the one that learns from rated answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.running import Bench, preferences, rated


@pytest.fixture
def bench_of(tmp_path: Path) -> Any:
    """`bench_of("orpo")`: runs of that stage in the test's folder."""
    return lambda stage: Bench(tmp_path, stage, (rated if stage == "kto" else preferences)(16))


def step_loss(trainer: Any, batches: list[list[int]]) -> float:
    """The loss of an optimizer step over these micro-batches of rows."""
    loaded = [trainer.data_collator([trainer.train_dataset[row] for row in batch]) for batch in batches]
    found, items = trainer.get_batch_samples(iter(loaded), len(loaded), torch.device("cpu"))
    trainer.model.train()
    return sum(float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=items)) for batch in found)
