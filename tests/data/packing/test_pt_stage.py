"""`pt`: every token of a text is learned, in padded or packed batches; the perplexity is that of the held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from luthier.core.testing.surroundings import installed_catalog
from luthier.plugins.pt import PtConfig
from luthier.plugins.pt.stage import train


class Texts:
    """Rows of text as the data worker gives them: every token a label."""

    def __init__(self, lengths: tuple[int, ...], seed: int) -> None:
        random = np.random.RandomState(seed)
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.ids = [random.randint(97, 123, size=length).astype(np.int64) for length in lengths]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return {"input_ids": self.ids[index], "labels": self.ids[index].copy()}


@torch.no_grad()
def perplexity(model: Any, texts: Texts) -> float:
    """exp of the mean over all predicted tokens, text by text, from the logits."""
    total, count = 0.0, 0
    for row in texts.ids:
        ids = torch.from_numpy(row)[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        total += float(cross_entropy(logits[0, :-1].double(), ids[0, 1:], reduction="sum"))
        count += len(row) - 1
    return math.exp(total / count)


@pytest.mark.parametrize("packing", [True, False])
def test_the_perplexity_of_held_out_texts(make_run: Callable[..., Any], packing: bool) -> None:
    made = make_run("llama", stage="pt", packing=packing, rows=Texts((30, 12, 40, 8, 25, 19), 1), train={"epochs": 2})
    held_out = Texts((17, 33, 5, 21), 2)
    made.runtime.data.eval = held_out
    metrics = train(made.runtime, PtConfig())
    assert made.runtime.plan.step("stage").method == "pt"
    expected = perplexity(made.runtime.model.eval(), held_out)
    assert metrics["eval_perplexity"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]), rel=1e-12)
    assert metrics["eval_tokens"] == sum(length - 1 for length in (17, 33, 5, 21))
    (told,) = [event.values for event in made.events if event.kind == "evaluate"]
    assert told["perplexity"] == metrics["eval_perplexity"]
    # Every token but the first of each text, in both epochs.
    assert metrics["trained_tokens"] == 2 * sum(length - 1 for length in (30, 12, 40, 8, 25, 19))


def test_without_held_out_rows_there_is_no_perplexity(make_run: Callable[..., Any]) -> None:
    metrics = train(make_run("llama", stage="pt", rows=Texts((30, 12, 40), 1), train={"max_steps": 1}).runtime, PtConfig())
    assert not [key for key in metrics if key.startswith("eval")]


def test_the_start_says_how_full_the_batches_are(make_run: Callable[..., Any]) -> None:
    made = make_run("llama", stage="pt", rows=Texts((40, 24, 30, 34, 60), 1), train={"max_steps": 1})
    train(made.runtime, PtConfig())
    (start,) = [event.values for event in made.events if event.kind == "start"]
    assert start["padding"] == 0
    assert start["packing_efficiency"] in (64 / 64, 60 / 64)  # of the one batch of one step


def test_it_learns_from_text_and_packs(profile: Callable[..., Any]) -> None:
    stage: Any = installed_catalog().method("stage", "pt")
    assert stage.data_kind == "text"
    assert "stage.packs" in stage.provides
