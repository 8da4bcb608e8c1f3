"""The memory a run will need, from formulas: before a weight is loaded.

Weights, gradients and optimizer state are exact sums over parameters. Activations follow the bytes that a Llama-like layer
keeps for its backward pass (docs/memory.md derives them); `peak` is the sum, the moment the backward pass begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from luthier.core.contracts import MemoryTerms
from luthier.core.plan import MemoryForecast, Precision
from luthier.core.profile import ArchitectureProfile

DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


def forecast(
    profile: ArchitectureProfile, terms: Iterable[MemoryTerms], precision: Precision, batch_tokens: int
) -> MemoryForecast:
    """Predicted bytes for micro-batches of `batch_tokens` tokens, from every method's share."""
    shares = list(terms)
    width = DTYPE_BYTES[precision.weights]
    stored = [share.weight_bytes for share in shares if share.weight_bytes is not None]
    weights = profile.parameters * (stored[0] if stored else width)
    gradients = optimizer = 0.0
    optimizer_bytes = sum(share.optimizer_bytes for share in shares)
    optimizer_copies = sum(share.optimizer_copies for share in shares)
    scale = 1.0
    for share in shares:
        per_parameter = share.trainable_bytes if share.trainable_bytes is not None else width
        weights += share.added * per_parameter + share.constant
        gradients += share.trainable * per_parameter
        optimizer += share.trainable * (optimizer_bytes + optimizer_copies * per_parameter)
        scale *= share.activation_scale
    layers = layer_elements_per_token(profile) * DTYPE_BYTES[precision.compute] * profile.layers
    # A float32 copy in place of the one that `layer_elements_per_token` counts.
    layers += sum(share.cast_inputs for share in shares) * (DTYPE_BYTES["float32"] - width)
    kept = layers * scale + logits_bytes_per_token(profile, precision)
    activations = kept * batch_tokens
    if precision.autocast and not stored:
        # Autocast casts each weight for its product, and the backward pass keeps the copy.
        activations += matmul_parameters(profile) * DTYPE_BYTES[precision.compute]
    return MemoryForecast(
        weights=round(weights),
        gradients=round(gradients),
        optimizer=round(optimizer),
        activations=round(activations),
        peak=round(weights + gradients + optimizer + activations),
    )


def matmul_parameters(profile: ArchitectureProfile) -> int:
    """Parameters that take part in matrix products: projections and output head, but no embeddings and norms."""
    if not profile.role_parameters:
        return profile.parameters
    layered = ("attn.", "mlp.", "mixer")
    projections = sum(count for role, count in profile.role_parameters.items() if role.startswith(layered))
    return projections + (profile.role_parameters.get("head") or profile.vocab_size * profile.hidden_size)


def layer_elements_per_token(profile: ArchitectureProfile) -> int:
    """Numbers per token that one decoder layer keeps for the backward pass, with adapters on its projections.

    8 H for residual stream, norms and inputs of the projections, 2 (heads + kv) x head_dim
    for queries, keys, values and the attention output, 5 I for gate, up, activation, product and input of `down`.
    """
    attention = max(
        (2 * (group.heads + group.kv_heads) * group.head_dim for group in profile.attention), default=4 * profile.hidden_size
    )
    return 8 * profile.hidden_size + attention + 5 * profile.intermediate_size


def logits_bytes_per_token(profile: ArchitectureProfile, precision: Precision) -> float:
    """Logits in the compute format, their float32 copy, its log-softmax, and the gradient of one of these."""
    return float(profile.vocab_size * (DTYPE_BYTES[precision.compute] + 12))
