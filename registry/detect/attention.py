"""Attention blocks: parts by name, then heads and sizes from the shapes, checked against each other and the configuration.

q.out = heads * head_dim          (twice that where the query carries a gate on the output)
k.out = kv_heads * head_dim,  v.out = kv_heads * value_dim,  o.in = heads * value_dim
qkv.out = (heads + 2 kv_heads) * head_dim
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.profile import AttentionKind
from luthier.registry.detect.fields import integer, per_layer, read
from luthier.registry.detect.vocabulary import ATTENTION_NAMES, CHECKED_HEADS, POSITION
from luthier.registry.detect.weights import Weight

PART_ROLES: Final = {"q_up": "q"}
CROSS_PARTS: Final = frozenset({"q", "k", "v", "o"})
HEAD_DIMS: Final = (
    "qk_head_dim", "head_dim", "attention_head_size", "head_size", "d_head", "attn_head_size", "dim_head", "kv_channels",
    "head_features",
)  # fmt: skip


class MismatchError(Exception):
    """The shapes of a block contradict the parts that its names suggest."""


@dataclass(frozen=True)
class Heads:
    """The sizes of one attention block, in heads and features."""

    kind: AttentionKind
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


def name_parts(weights: Sequence[Weight]) -> None:
    """Gives each weight of an attention block its part, role included, or says why it has none."""
    for weight in weights:
        name = weight.local_name(weight.block)
        if weight.kind == "other":
            weight.part = "conv"
        elif weight.kind == "embedding" and POSITION.search(name):
            weight.part = "position"
        else:
            weight.part = ATTENTION_NAMES.get(name, "")
        if not weight.part or (weight.context == "cross" and weight.part not in CROSS_PARTS):
            weight.part, weight.why = "", f"no part of attention is known by the name {name!r}"
            continue
        group = "cross" if weight.context == "cross" else "attn"
        weight.role = f"{group}.{PART_ROLES.get(weight.part, weight.part)}"
        if weight.kind == "parameter" and len(weight.shape) == 3:
            _orient(weight)


def _orient(weight: Weight) -> None:
    """A 3-D projection: (hidden, heads, head_dim) as in XLNet, or (experts, out, in) as in a mixture of attention heads."""
    if weight.module.rsplit(".", 1)[-1] == weight.local_name(weight.block):
        weight.out_features, weight.in_features = weight.shape[1:]
    else:
        weight.in_features, weight.out_features = weight.shape[0], math.prod(weight.shape[1:])
        if weight.part == "o":
            weight.in_features, weight.out_features = weight.out_features, weight.in_features


def size_block(weights: Sequence[Weight], modules: Sequence[Any], config: Any) -> Heads:
    """Heads of a block from its named parts; `modules` are the block's modules, outermost first. Raises MismatchError."""
    parts: dict[str, list[Weight]] = {}
    for weight in weights:
        parts.setdefault(weight.part, []).append(weight)
    if "o" not in parts:
        raise MismatchError("attention without a known output projection")
    queries = _size(parts, "q") or _size(parts, "q_up") or _size(parts, "qk") or 0
    if not queries and "qkv" not in parts:
        raise MismatchError("attention without a known query projection")
    head_dim = _head_dim(modules, config, queries)
    value_dim = _of_modules(modules, "v_head_dim", "value_head_dim") or head_dim
    if "kv_down" in parts or "kv_up" in parts:
        found = _latent(parts, modules, config, head_dim, value_dim, queries)
    else:
        found = _plain(parts, modules, config, head_dim, value_dim, queries)
    _check_configured(found.heads, modules, config)
    return found


def _plain(
    parts: dict[str, list[Weight]], modules: Sequence[Any], config: Any, head_dim: int, value_dim: int, queries: int
) -> Heads:
    result = parts["o"][0].in_features or 0
    heads = _divide(queries, head_dim, "q") if "o_down" in parts else _divide(result, value_dim, "o")
    if "qkv" in parts:
        rest = _divide(_size(parts, "qkv") or 0, head_dim, "qkv") - heads
        if rest < 2 or rest % 2:
            raise MismatchError(f"the fused projection leaves {rest} heads for keys and values beside {heads} query heads")
        kv_heads = rest // 2
    else:
        heads = _with_experts(parts["o"][0], heads, config)
        if queries not in (heads * head_dim, 2 * heads * head_dim) and not parts["o"][0].kind == "parameter":
            raise MismatchError(f"q gives {queries} features, o takes {result}: not {heads} heads of {head_dim}")
        kv_heads = _kv_heads(parts, modules, config, head_dim, value_dim, heads)
    if kv_heads < 1 or heads % kv_heads:
        raise MismatchError(f"{heads} query heads cannot share {kv_heads} key and value heads")
    kind: AttentionKind = "mha" if kv_heads == heads else "mqa" if kv_heads == 1 else "gqa"
    return Heads(kind, heads, kv_heads, head_dim, value_dim)


def _kv_heads(
    parts: dict[str, list[Weight]], modules: Sequence[Any], config: Any, head_dim: int, value_dim: int, heads: int
) -> int:
    keys, values, both = _size(parts, "k"), _size(parts, "v"), _size(parts, "kv")
    if "qk" in parts and values:
        return _divide(values, value_dim, "v")
    if both:
        shared = _divide(both, head_dim, "kv")
        if shared > 1 and shared % 2:
            raise MismatchError(f"kv gives {both} features, which are not keys and values of {head_dim} each")
        return max(shared // 2, 1)  # one head of both: keys and values are the same vector (DeepSeek-V4)
    if keys:
        kv_heads = _divide(keys, head_dim, "k")
        if values and values != kv_heads * value_dim:
            raise MismatchError(f"k gives {keys} features, v {values}: not the same number of heads")
        return kv_heads
    if read(modules[0], "is_kv_shared_layer"):  # keys and values come from an earlier layer
        return _of_modules(modules, "num_key_value_heads") or integer(config, "num_key_value_heads") or heads
    raise MismatchError("attention without a known key projection")


def _latent(
    parts: dict[str, list[Weight]], modules: Sequence[Any], config: Any, head_dim: int, value_dim: int, queries: int
) -> Heads:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values of all heads from one small vector."""
    missing = [part for part in ("kv_down", "kv_up") if part not in parts]
    if missing:
        raise MismatchError(f"latent attention without {missing[0]}")
    heads = _divide(parts["o"][0].in_features or 0, value_dim, "o")
    gated = heads * (head_dim + value_dim)
    if queries not in (heads * head_dim, gated):
        raise MismatchError(
            f"q gives {queries} features, o takes {parts['o'][0].in_features}: not {heads} heads of {head_dim}"
        )
    per_head = _divide(_size(parts, "kv_up") or 0, heads, "kv_up")
    if not value_dim < per_head <= head_dim + value_dim:
        raise MismatchError(f"kv_up gives {per_head} features a head, where keys have {head_dim} and values {value_dim}")
    return Heads("mla", heads, heads, head_dim, value_dim)


def _head_dim(modules: Sequence[Any], config: Any, queries: int) -> int:
    """Features of one query head: as the module says, or the configuration, or queries over the configured heads."""
    direct = _of_modules(modules, *HEAD_DIMS) or integer(config, "head_dim", "d_kv")
    if direct:
        return direct
    heads = _of_modules(modules, *CHECKED_HEADS, "num_attn_heads") or integer(config, *CHECKED_HEADS)
    if not heads:
        raise MismatchError("neither the module nor the configuration tells the number of heads")
    return _divide(queries or integer(config, "hidden_size") or 0, heads, "q")


def _check_configured(heads: int, modules: Sequence[Any], config: Any) -> None:
    """Heads as the shapes give them must be a number of heads that the configuration or the module knows."""
    known: set[int] = set()
    for name, value in _plain_fields(config):
        if "head" in name and "dim" not in name:
            known |= {item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, int)}
    known |= {number for number in (_of_modules(modules, name) for name in (*CHECKED_HEADS, "num_attn_heads")) if number}
    if known and heads not in known:
        raise MismatchError(f"the shapes give {heads} heads, the configuration {', '.join(map(str, sorted(known)))}")


def _plain_fields(config: Any) -> list[tuple[str, Any]]:
    fields = [(name, value) for name, value in vars(config).items() if not name.startswith("_")]
    names = getattr(config, "attribute_map", None) or {}
    return fields + [(name, read(config, name)) for name in names if "head" in name]


def _with_experts(output: Weight, heads: int, config: Any) -> int:
    """In a mixture of attention heads (JetMoE) each chosen expert brings its own query heads."""
    chosen = integer(config, "num_experts_per_tok") or 1
    return heads * chosen if output.kind == "parameter" and output.path.endswith(".weight") else heads


def _size(parts: dict[str, list[Weight]], part: str) -> int | None:
    return sum(weight.out_features or 0 for weight in parts[part]) if part in parts else None


def _divide(size: int, by: int, part: str) -> int:
    if not by or not size or size % by:
        raise MismatchError(f"{part} has {size} features, which are not heads of {by}")
    return size // by


def _of_modules(modules: Sequence[Any], *names: str) -> int | None:
    for name in names:
        for module in modules:
            value = read(module, name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def window_of(modules: Sequence[Any], config: Any, layer: int) -> tuple[int | None, int | None]:
    """Sliding window and chunk of one layer in tokens: as its module says, else as the configuration says for the layer."""
    kind = per_layer(config, "layer_types", layer) or per_layer(config, "attention_layers", layer)
    window = integer(config, "sliding_window", "attention_window_size", "window_size")
    chunk = integer(config, "attention_chunk_size") if kind == "chunked_attention" else None
    own = next((value for value in (read(module, "sliding_window") for module in modules) if isinstance(value, int)), None)
    if kind in ("full_attention", "global") or any(read(module, "is_sliding") is False for module in modules):
        return None, chunk  # some modules keep the window that only their siblings use
    if own is not None and own > 0:
        return own, chunk
    if kind in ("sliding_attention", "local", "attention"):
        return window, chunk
    everywhere = kind is None and read(config, "use_sliding_window") is not False
    return (integer(config, "sliding_window") if everywhere else None), chunk


def softcap_of(modules: Sequence[Any], config: Any) -> float | None:
    """The cap on attention scores (Gemma 2), or None."""
    for source in (*modules, config):
        value = read(source, "attn_logit_softcapping", "softcap", "attention_softcap")
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
    return None
