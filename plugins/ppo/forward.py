"""One forward pass over prompts with their answers: hidden states and logits at the places that predict answer tokens.

    tokens   p p p p a a a <eos> . .        p prompt, a answer, . padding on the right
    places         x x x x                  the hidden state at x predicts the token after it, and is its state's value

The output head is given the hidden states of these places alone, so that neither prompts nor padding have logits, whatever
the model does to them afterwards (soft-capping, scaling). A pass for the values alone shows it a single place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.generation import evaluating

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Batch:
    """Sequences (B, T), padded on the right. `places`, bool (B, T), are where answer tokens are predicted, N in all;
    `targets` (N,) these tokens, row by row."""

    ids: Tensor
    mask: Tensor
    places: Tensor
    targets: Tensor


def make_batch(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int, device: Any) -> Batch:
    """Prompts of at least one token with their answers."""
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    places = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer], dtype=torch.int64)
        mask[row, :end] = 1
        places[row, len(prompt) - 1 : end - 1] = True
    targets = torch.tensor([token for answer in answers for token in answer], dtype=torch.int64)
    return Batch(ids.to(device), mask.to(device), places.to(device), targets.to(device))


def head_of(model: Any) -> nn.Module:
    """The module that turns hidden states into logits, wrapped by an adapter or not; raises LuthierError without one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head: nn.Module | None = base.get_output_embeddings()
    if head is None:
        raise LuthierError(f"a {type(base).__name__} names no output head to read hidden states at", where="model")
    return head


def states_at(model: Any, ids: Tensor, mask: Tensor, places: Tensor, *, logits: bool) -> tuple[Tensor, Tensor | None]:
    """(hidden states (N, H), logits (N, V) or None) at `places`, bool (B, T), of the model as it is switched now."""
    caught: list[Tensor] = []

    def select(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = arguments
        # Virtual tokens that an adapter puts before the prompt predict nothing of the answer.
        where = torch.nn.functional.pad(places, (hidden.shape[1] - places.shape[1], 0))
        caught.append(hidden[where])
        return (caught[-1][None] if logits else hidden[:1, -1:].detach(), *rest)

    handle = head_of(model).register_forward_pre_hook(select)
    try:
        out = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        handle.remove()
    if len(caught) != 1:
        raise LuthierError(
            f"the output head of {type(model).__name__} was called {len(caught)} times in a forward pass, not once",
            where="model",
        )
    return caught[0], out[0] if logits else None


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Within the block the model computes as in evaluation, but layers that recompute their activations still do so.

    Old and new policy must differ by what was learned alone. Such a layer asks whether it trains; its own dropouts, which
    would ask the same, are set to zero meanwhile, and the modules in it are in evaluation mode.
    """
    with evaluating(model):
        before: list[tuple[Any, str, float]] = []
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) is True:
                module.training = True
                for name, value in list(vars(module).items()):
                    if "drop" in name and isinstance(value, float) and value:
                        before.append((module, name, value))
                        setattr(module, name, 0.0)
        try:
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)
