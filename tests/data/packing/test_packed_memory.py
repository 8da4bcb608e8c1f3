"""What packed attention keeps for the backward pass, against the forecast: every saved tensor is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from luthier.core.data.collate import collate_packed
from luthier.core.testing import tiny_model
from luthier.core.testing.surroundings import installed_catalog

TOKENS = 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("phi3", "eager")])
def test_the_pairs_are_what_is_kept(profile: Any, documents: Any, kind: str, attention: str, dtype: torch.dtype) -> None:
    model: Any = tiny_model(kind).load(dtype, attn_implementation=attention).train()
    batch = collate_packed(list(documents((200, 150, 100, 62))))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.ndim >= 2 and tuple(tensor.shape[-2:]) == (TOKENS, TOKENS):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch, use_cache=False).loss
    method = installed_catalog().method("attention", attention)
    terms = method.memory(profile(kind), method.config())
    assert terms.pair_bytes is not None
    predicted = terms.pair_bytes(torch.empty((), dtype=dtype).itemsize) * TOKENS**2
    # The boolean mask itself, one byte a pair, is there meanwhile and not kept.
    assert sum(kept.values()) <= predicted <= sum(kept.values()) + TOKENS**2
    assert float(loss.detach()) > 0


def test_the_plan_counts_them_for_packed_runs_only(plan: Callable[..., Any]) -> None:
    """Two layers' float32 masks and the boolean one: (2 * 4 + 1) bytes for each of 2048^2 pairs."""
    size = {"batch_tokens": 2048}
    packed, padded = plan(train=size).memory, plan(packing=False, train=size).memory
    assert packed.activations - padded.activations == 9 * 2048**2
    assert (packed.weights, packed.gradients, packed.optimizer) == (padded.weights, padded.gradients, padded.optimizer)
