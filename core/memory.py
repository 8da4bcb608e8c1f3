"""The memory a run will need, from formulas: before a weight is loaded.

Weights, gradients and optimizer state are exact sums over parameters. Activations follow the bytes that a Llama-like layer
keeps for its backward pass (docs/memory.md derives them); `peak` is the sum, the moment the backward pass begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from luthier.core.contracts import MemoryTerms
from luthier.core.plan import MemoryForecast, Precision
from luthier.core.profile import ArchitectureProfile

DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


def forecast(
    profile: ArchitectureProfile,
    terms: Iterable[MemoryTerms],
    precision: Precision,
    batch_tokens: int,
    *,
    packed: bool = False,
) -> MemoryForecast:
    """Predicted bytes for micro-batches of `batch_tokens` tokens, from every method's share.

    `packed` batches are one sequence: what attention keeps for pairs of positions then grows with the square of its length.
    """
    shares = list(terms)
    width = DTYPE_BYTES[precision.weights]
    stored = [share for share in shares if share.weight_bytes is not None]
    weights = float(profile.parameters * width)
    gradients = optimizer = 0.0
    for share in shares:
        per_parameter = share.trainable_bytes if share.trainable_bytes is not None else width
        weights += share.added * per_parameter + share.constant + _storage_change(share, profile, width)
        moved = min([share.trainable, *(by.moved_at_once(share) for by in shares if by.moved_at_once is not None)])
        gradients += _gradients(share, moved, per_parameter, shares)
        optimizer += sum(_optimizer_state(share, moved, per_parameter, moved_by) for moved_by in shares)
    layers: float = layer_elements_per_token(profile) * DTYPE_BYTES[precision.compute] * profile.layers
    # A float32 copy in place of the one that `layer_elements_per_token` counts.
    layers += sum(share.cast_inputs for share in shares) * (DTYPE_BYTES["float32"] - width)
    if packed:
        pairs = (share.pair_bytes for share in shares if share.pair_bytes is not None)
        layers += sum(each(DTYPE_BYTES[precision.compute]) for each in pairs) * batch_tokens
    kept = layers * _kept_part(profile, shares) + logits_bytes_per_token(profile, precision)
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


def _kept_part(profile: ArchitectureProfile, shares: Sequence[MemoryTerms]) -> float:
    """Of what all layers would keep, the part that is there at the highest moment: all factors, a layer computed anew."""
    scale = math.prod(share.activation_scale for share in shares)
    whole = layer_elements_per_token(profile) * profile.layers
    if not whole or any(share.activation_scale == 0 and not share.recomputed for share in shares):
        return scale  # the backward pass does not reach the layers, and none is computed again
    return scale + sum(share.recomputed for share in shares) / whole


def _storage_change(share: MemoryTerms, profile: ArchitectureProfile, width: int) -> float:
    """Bytes that the base weights take more (or less) than in the plan's format, by one method's storage of them."""
    if share.weight_bytes is None:
        return 0.0
    parameters = profile.parameters if share.stored_parameters is None else share.stored_parameters
    return parameters * (share.weight_bytes - width)


def _gradients(trained: MemoryTerms, moved: int, per_parameter: float, shares: Iterable[MemoryTerms]) -> float:
    """Bytes of gradient for the parameters that one method made trainable, as far as they exist at one time."""
    size_of = next((share.gradient for share in shares if share.gradient is not None), None)
    if size_of is not None and trained.matrices:
        sizes = [(size_of(matrix), matrix.count) for matrix in trained.matrices]
        return sum(count * (size.numbers * per_parameter + size.bytes) for size, count in sizes)
    return moved * per_parameter * math.prod(share.gradient_scale for share in shares)


def _optimizer_state(trained: MemoryTerms, moved: int, per_parameter: float, optimizer: MemoryTerms) -> float:
    """Bytes of state that one method keeps for the parameters that another made trainable, of which `moved` are its own."""
    if optimizer.optimizer_state is not None and trained.matrices:
        sizes = [(optimizer.optimizer_state(matrix), matrix.count) for matrix in trained.matrices]
        return sum(count * (size.numbers * per_parameter + size.bytes) for size, count in sizes)
    return moved * (optimizer.optimizer_bytes + optimizer.optimizer_copies * per_parameter)


def matmul_parameters(profile: ArchitectureProfile) -> int:
    """Parameters that take part in matrix products: projections and output head, but no embeddings and norms."""
    if not profile.role_parameters:
        return profile.parameters
    layered = ("attn.", "mlp.", "mixer")
    projections = sum(count for role, count in profile.role_parameters.items() if role.startswith(layered))
    if profile.has("score"):
        return projections + profile.role_parameters["score"]
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
    """Logits in the compute format, their float32 copy, its log-softmax, and the gradient of one of these.

    Of a model with a score head: the hidden states in float32, which the head multiplies.
    """
    if profile.has("score"):
        return float(profile.hidden_size * 4)
    return float(profile.vocab_size * (DTYPE_BYTES[precision.compute] + 12))
