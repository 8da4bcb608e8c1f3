"""The memory forecast against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.contracts import MemoryTerms
from luthier.core.frozen import FrozenDict
from luthier.core.memory import forecast
from luthier.core.plan import Precision
from luthier.core.profile import AttentionGroup

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


# Llama-2-7B: 8 H + 2 (heads + kv) x head_dim + 5 I numbers a token and layer, and 16 bytes for each logit in float32.
LLAMA_7B = {
    "layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "attention": (AttentionGroup(kind="mha", layers=tuple(range(32)), heads=32, kv_heads=32, head_dim=128),),
}
H, K = 4096, 8 * 4096 + 2 * (32 + 32) * 128 + 5 * 11008


def numbers(profile: Any, *terms: MemoryTerms) -> float:
    """Numbers per token that the decoder layers keep in float32."""
    return forecast(profile, terms, FP32, batch_tokens=1).activations / 4 - 32000 * 4


def test_the_recomputed_layer_is_there_in_full_however_few_layers_train(profiles: Callable[..., Any]) -> None:
    model = profiles(**LLAMA_7B)
    recompute = MemoryTerms(activation_scale=H / K, recomputed=K)
    two_of_32 = MemoryTerms(activation_scale=2 / 32)
    assert numbers(model) == 32 * K
    assert numbers(model, two_of_32) == 2 * K
    assert numbers(model, recompute) == 32 * H + K
    assert numbers(model, two_of_32, recompute) == numbers(model, recompute, two_of_32) == 2 * H + K
    # Inputs that wait elsewhere leave the one layer; where the backward pass reaches none, none is computed again.
    assert numbers(model, two_of_32, MemoryTerms(activation_scale=0.0, recomputed=K)) == K
    assert numbers(model, MemoryTerms(activation_scale=0.0), recompute) == 0


def test_the_recomputed_layer_holds_its_casted_inputs(profiles: Callable[..., Any]) -> None:
    """With bfloat16 weights, one of 32 layers' float32 copies, and the part of the others that its factor leaves."""
    model, cast = profiles(**LLAMA_7B), MemoryTerms(cast_inputs=32 * 1000)
    terms = [MemoryTerms(activation_scale=0.5, recomputed=K)]
    more = (
        forecast(model, [*terms, cast], BF16, batch_tokens=8).activations
        - forecast(model, terms, BF16, batch_tokens=8).activations
    )
    assert more == 8 * 2 * 1000 * (16 + 1)


def test_pairs_of_positions_count_in_packed_batches(profile: Any) -> None:
    """50 numbers and 100 bytes a pair; a quarter of it where the layers keep a quarter."""
    terms = [MemoryTerms(pair_bytes=lambda width: 50 * width), MemoryTerms(pair_bytes=lambda width: 100)]
    for precision, each in ((FP32, 300), (BF16, 200)):
        plain = forecast(profile, terms, precision, batch_tokens=10)
        packed = forecast(profile, terms, precision, batch_tokens=10, packed=True)
        assert packed.activations - plain.activations == each * 10**2
        quarter = [*terms, MemoryTerms(activation_scale=0.25)]
        less = [
            forecast(profile, quarter, precision, batch_tokens=10, packed=packing).activations for packing in (True, False)
        ]
        assert less[0] - less[1] == each * 10**2 / 4
    assert forecast(profile, terms, FP32, 10) == forecast(profile, [], FP32, 10)


def test_the_peak_is_the_sum_and_grows_with_the_batch(profile: Any) -> None:
    terms = [MemoryTerms(trainable=P), ADAMW]
    small, large = (forecast(profile, terms, FP32, batch_tokens=tokens) for tokens in (8, 16))
    assert small.peak == small.weights + small.gradients + small.optimizer + small.activations
    assert large.peak - small.peak == small.activations


def test_the_plan_forecasts_with_its_own_methods(shop: Any) -> None:
    memory = shop.plan(adapter={"use": "thin", "rank": 2}, patches=[], train={"batch_tokens": 16}).memory
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * 1000 + 4 * 20, 4 * 20, 8 * 20)
    assert shop.plan(adapter="whole", patches=[]).memory.optimizer == 8 * 1000
