"""The memory forecast against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.contracts import MemoryTerms
from luthier.core.frozen import FrozenDict
from luthier.core.memory import forecast
from luthier.core.plan import Precision

FP32 = Precision(name="fp32", weights="float32", compute="float32", why="")
BF16 = Precision(name="bf16", weights="bfloat16", compute="bfloat16", why="")
MIXED = Precision(name="mixed", weights="float32", compute="bfloat16", why="")
ADAMW = MemoryTerms(optimizer_bytes=8)
P = 1000  # parameters of the toy model


@pytest.fixture
def profile(profiles: Callable[..., Any]) -> Any:
    return profiles(parameters=P)


def held(memory: Any) -> float:
    """Bytes per parameter that are held between forward and backward pass, without activations."""
    return (memory.weights + memory.gradients + memory.optimizer) / P


def test_full_training_in_fp32_with_adamw_takes_16_bytes_a_parameter(profile: Any) -> None:
    memory = forecast(profile, [MemoryTerms(trainable=P), ADAMW], FP32, batch_tokens=8)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * P, 4 * P, 8 * P)
    assert held(memory) == 16


def test_full_training_in_mixed_precision_takes_18_bytes_a_parameter(profile: Any) -> None:
    # shared count of this project: float32 weights, gradients and two moments, and the bf16 copy of what is multiplied
    mixed = forecast(profile, [MemoryTerms(trainable=P), ADAMW], MIXED, batch_tokens=8)
    bf16 = forecast(profile, [MemoryTerms(trainable=P), ADAMW], BF16, batch_tokens=8)
    copies = mixed.activations - bf16.activations  # the products are the same, what is more are the casted weights
    assert held(mixed) + copies / P == 18


def test_casted_copies_are_of_what_is_multiplied_only(profiles: Callable[..., Any]) -> None:
    roles = FrozenDict({"embed": 800, "norm": 32, "attn.q": 64, "mlp.down": 128})
    tied = profiles(role_parameters=roles)
    untied = profiles(role_parameters=FrozenDict({**roles, "head": 900}))
    for model, head in ((tied, 100 * 8), (untied, 900)):
        mixed = forecast(model, [], MIXED, batch_tokens=8)
        assert mixed.activations - forecast(model, [], BF16, batch_tokens=8).activations == 2 * (64 + 128 + head)


def test_full_training_in_pure_bf16_keeps_two_byte_weights_and_gradients(profile: Any) -> None:
    memory = forecast(profile, [MemoryTerms(trainable=P), MemoryTerms(optimizer_copies=2)], BF16, batch_tokens=8)
    assert held(memory) == 8  # bf16 weights, gradients and two bf16 moments


def test_a_low_rank_adapter_adds_its_own_parameters(profile: Any) -> None:
    terms = [MemoryTerms(trainable=50, added=50, trainable_bytes=4), ADAMW]
    memory = forecast(profile, terms, BF16, batch_tokens=8)
    assert memory.weights == 2 * P + 4 * 50
    assert memory.gradients == 4 * 50
    assert memory.optimizer == 8 * 50


def test_quantised_storage_replaces_the_bytes_of_the_base_weights(profile: Any) -> None:
    memory = forecast(profile, [MemoryTerms(weight_bytes=0.52), MemoryTerms(constant=7)], BF16, batch_tokens=8)
    assert memory.weights == 520 + 7


def test_layers_keep_what_the_backward_pass_needs(profile: Any) -> None:
    # hidden 8, intermediate 16, 4 heads and 2 key-value heads of 2, 4 layers, vocabulary 100, 10 tokens, 4 bytes:
    layer = 8 * 8 + (2 * 4 * 2 + 2 * 2 * 2) + 5 * 16
    logits = 100 * (4 + 4 + 4 + 4)
    memory = forecast(profile, [], FP32, batch_tokens=10)
    assert memory.activations == 10 * (4 * layer * 4 + logits)
    halved = forecast(profile, [], BF16, batch_tokens=10)
    assert halved.activations == 10 * (4 * layer * 2 + 100 * (2 + 4 + 4 + 4))


def test_a_share_that_scales_activations_leaves_the_logits_alone(profile: Any) -> None:
    whole = forecast(profile, [], FP32, batch_tokens=10).activations
    quarter = forecast(profile, [MemoryTerms(activation_scale=0.25)], FP32, batch_tokens=10).activations
    logits = 10 * 100 * 16
    assert quarter - logits == (whole - logits) / 4


def test_the_peak_is_the_sum_and_grows_with_the_batch(profile: Any) -> None:
    terms = [MemoryTerms(trainable=P), ADAMW]
    small, large = (forecast(profile, terms, FP32, batch_tokens=tokens) for tokens in (8, 16))
    assert small.peak == small.weights + small.gradients + small.optimizer + small.activations
    assert large.peak - small.peak == small.activations


def test_the_plan_forecasts_with_its_own_methods(shop: Any) -> None:
    memory = shop.plan(adapter={"use": "thin", "rank": 2}, patches=[], train={"batch_tokens": 16}).memory
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * 1000 + 4 * 20, 4 * 20, 8 * 20)
    assert shop.plan(adapter="whole", patches=[]).memory.optimizer == 8 * 1000
