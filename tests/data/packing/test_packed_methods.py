"""The built-in methods on packed batches: each trains, and where a number is promised it is that of padded batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from luthier.core.data.collate import collate_packed
from luthier.core.optimizing import trained_parameters
from luthier.core.testing.measuring import loss_of, wrong_gradients
from luthier.plugins.neftune.noise import document_lengths
from luthier.plugins.sft import SftConfig
from luthier.plugins.sft.stage import train

PATCHES: list[Any] = [
    "checkpointing",
    "neftune",
    {"use": "new_tokens", "options": {"tokens": ["<|note|>"]}},
    {"use": "rope_scaling", "options": {"type": "linear", "factor": 2.0}},
]
ADAPTERS: list[Any] = [
    "lora",
    "dora",
    "oft",
    "full",
    "freeze",
    {"use": "lora", "options": {"init": "eva"}},
    {"use": "lora", "options": {"init": "corda"}},
    {"use": "peft", "options": {"tuner": "ia3"}},
]


def name(value: Any) -> str:
    return value if isinstance(value, str) else "-".join([value["use"], *map(str, value["options"].values())])


def trained(made: Any) -> dict[str, float]:
    before = {key: one.detach().clone() for key, one in trained_parameters(made.runtime.model).items()}
    metrics = train(made.runtime, SftConfig())
    moved = [key for key, one in trained_parameters(made.runtime.model).items() if not torch.equal(one, before[key])]
    assert moved
    assert math.isfinite(metrics["train_loss"])
    assert any("documents are kept apart" in said for said in made.said)
    return metrics


@pytest.mark.parametrize("adapter", ADAPTERS, ids=name)
def test_adapters_train_on_packed_batches(make_run: Callable[..., Any], adapter: Any) -> None:
    metrics = trained(make_run("llama", adapter=adapter, held_out=(9, 12), train={"max_steps": 2}))
    assert metrics["steps"] == 2
    assert math.isfinite(metrics["eval_loss"])


@pytest.mark.parametrize("patch", PATCHES, ids=name)
def test_patches_train_on_packed_batches(make_run: Callable[..., Any], patch: Any) -> None:
    assert trained(make_run("llama", adapter="full", patches=(patch,), train={"max_steps": 2}))["steps"] == 2


@pytest.mark.parametrize("optimizer", ["galore", "badam", "lion", "muon", "adam_mini"])
def test_optimizers_train_on_packed_batches(make_run: Callable[..., Any], optimizer: str) -> None:
    assert trained(make_run("llama", adapter="full", optimizer=optimizer, train={"max_steps": 2}))["steps"] == 2


def test_recomputed_layers_keep_documents_apart(make_run: Callable[..., Any], documents: Any) -> None:
    """The positions reach the layers again in the backward pass: same loss, same gradients."""
    batch = collate_packed(list(documents()))
    found = {}
    for patches in ((), ("checkpointing",)):
        model = make_run("llama", patches=patches).runtime.model.train()
        loss = loss_of(model, batch)
        loss.backward()
        found[patches] = (float(loss.detach()), {key: one.grad.clone() for key, one in trained_parameters(model).items()})
    (loss, gradients), (again, recomputed) = found.values()
    assert again == pytest.approx(loss, rel=1e-6)
    assert not wrong_gradients(recomputed, gradients, 1e-6)


def test_neftune_counts_the_tokens_of_each_document(documents: Any) -> None:
    """Its noise is scaled by the length of the document, not of the row."""
    rows = list(documents((5, 2, 9)))
    assert document_lengths(collate_packed(rows)).tolist() == [[5] * 5 + [2] * 2 + [9] * 9]  # type: ignore[union-attr]
