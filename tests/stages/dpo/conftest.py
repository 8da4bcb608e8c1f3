"""Runs of `dpo` in a folder of their own, and what a model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.testing.models import token_batch
from tests.stages.running import Bench


@pytest.fixture(scope="session")
def make_bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`make_bench()`: one that several tests can share."""
    return lambda: Bench(tmp_path_factory.mktemp("bench"), "dpo")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "dpo")


@pytest.fixture
def logits() -> Any:
    """`logits(model)` of a fixed batch, in the mode that the model is in."""

    def compute(model: Any) -> torch.Tensor:
        batch = token_batch(rows=3)
        with torch.no_grad():
            found: torch.Tensor = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).logits.clone()
        return found

    return compute
