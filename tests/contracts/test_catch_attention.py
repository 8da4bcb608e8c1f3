"""Attention kernels that break one promise each: the contract catches every one, and a sound one passes every check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.core.contracts import AttentionKernel
from luthier.core.testing import AttentionKernelContract

Caught = Callable[..., None]
PROMISES = sorted(name for name in vars(AttentionKernelContract) if name.startswith("test_"))


def scores(module: nn.Module, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    return query @ key.repeat_interleave(module.num_key_value_groups, 1).transpose(2, 3) * scaling  # type: ignore[arg-type]


def weighted(module: nn.Module, weights: Tensor, value: Tensor) -> tuple[Tensor, None]:
    value = value.repeat_interleave(module.num_key_value_groups, 1)  # type: ignore[arg-type]
    return (weights.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def plain(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
    found = scores(module, query, key, scaling)
    return weighted(module, found if mask is None else found + mask[..., : key.shape[2]], value)


def causal(query: Tensor, key: Tensor, ahead: int = 0) -> Tensor:
    """0 where a token sees another, -inf elsewhere; `ahead` more than it should."""
    size = (query.shape[2], key.shape[2])
    return torch.full(size, float("-inf")).triu(key.shape[2] - query.shape[2] + 1 + ahead)


def peeking(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
    """Sees one token of the future."""
    return weighted(module, scores(module, query, key, scaling) + causal(query, key, 1), value)


def unmasked(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
    """Causal, and blind to padding."""
    return weighted(module, scores(module, query, key, scaling) + causal(query, key), value)


def unscaled(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
    return plain(module, query, key, value, mask, 1.01 * scaling)


def severed(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
    """No gradient reaches the keys."""
    return plain(module, query, key.detach() + 0 * key, value, mask, scaling)


def kernel(name: str, function: Callable[..., Any], *, masked: bool = True) -> AttentionKernel[Any]:
    def register() -> None:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, eager_mask

        AttentionInterface.register(name, function)
        if masked:
            AttentionMaskInterface.register(name, eager_mask)

    return AttentionKernel(
        name=name,
        summary="A trial.",
        provides=frozenset({"attention.packed"}),
        implementation=name,
        register=register,
    )


def first_key(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
    if query.shape[2] < key.shape[2]:
        key, value = key.clone(), value.clone()
        key[:, :, 6], value[:, :, 6] = 0.0, 0.0
    return plain(module, query, key, value, mask, scaling)


KERNEL = kernel("trial_plain", plain)


@pytest.mark.parametrize("name", PROMISES)
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_sound_kernel_passes(name: str, kind: str, check: Caught) -> None:
    check(AttentionKernelContract, name, KERNEL, kind=kind)


BROKEN_KERNELS = [
    ("test_it_equals_plain_attention", kernel("trial_unscaled", unscaled), "a full batch: the output is"),
    ("test_padding_is_seen_by_nobody", kernel("trial_unmasked", unmasked), "a padded batch: the output is"),
    ("test_padding_is_seen_by_nobody", kernel("trial_no_mask", plain, masked=False), "a padded batch: the output is"),
    ("test_no_token_sees_a_later_one", kernel("trial_peeking", peeking), "moves the output of those before it"),
    ("test_gradients_are_right", kernel("trial_severed", severed), "the gradient is not that of plain attention"),
    ("test_packed_documents_are_kept_apart", kernel("trial_mixed", unmasked), "packed: the output is"),
    ("test_packed_documents_are_kept_apart", kernel("trial_cut", severed), "packed: the gradient is not that"),
    ("test_generation_with_the_cache", kernel("trial_first_key", first_key), "with the key-value cache"),
]


@pytest.mark.parametrize(
    ("name", "broken", "words"),
    BROKEN_KERNELS,
    ids=[f"{name[5:]}-{index}" for index, (name, *_) in enumerate(BROKEN_KERNELS)],
)
def test_a_broken_kernel_is_caught(name: str, broken: AttentionKernel[Any], words: str, caught: Caught) -> None:
    caught(AttentionKernelContract, name, broken, words)


def test_a_kernel_without_soft_capping_is_caught_on_gemma2(caught: Caught) -> None:
    caught(AttentionKernelContract, "test_it_equals_plain_attention", KERNEL, "a full batch", kind="gemma2")


def test_every_promise_has_a_kernel_that_breaks_it() -> None:
    assert {name for name, *_ in BROKEN_KERNELS} == set(PROMISES)
