"""The profile: roles grouped into patterns, attention grouped by form, sizes and counts, traits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.core.extensions import ArchitectureFamily
from luthier.core.frozen import FrozenDict
from luthier.core.prequantized import read_quantization, traits_of
from luthier.core.profile import (
    ROLES,
    ArchitectureProfile,
    AttentionGroup,
    AttentionKind,
    Quantization,
    RoleGroup,
    Tower,
    Unclassified,
)
from luthier.core.traits import Trait
from luthier.registry.detect.attention import Heads, softcap_of, window_of
from luthier.registry.detect.families import families_for
from luthier.registry.detect.fields import integer, read, rope_of, text_config
from luthier.registry.detect.roles import Ends, assign
from luthier.registry.detect.stack import Stack, find_stack, recorded
from luthier.registry.detect.vocabulary import CONTEXT_LENGTH, EXPERTS_PER_TOKEN
from luthier.registry.detect.weights import Inventory, Weight, inventory

EXPERT = re.compile(r"^(.*experts)\.(\d+)\.(.*)$")


def profile_of(model: Any, *, families: Sequence[ArchitectureFamily] = (), remote_code: bool = False) -> ArchitectureProfile:
    """Looks at a built model; see `luthier.registry.detect.detect`."""
    config = text_config(model.config)
    chosen = families_for(model.config.model_type, families)
    declared = recorded(model)
    stack = find_stack(model, declared, next((family.decoder for family in chosen if family.decoder), ""))
    found = inventory(model)
    ends = _ends(model, found)
    assigned = assign(found, stack, declared, chosen, config, ends)
    text = [weight for weight in found.weights if weight.role and not stack.in_tower(weight.path)]
    roles = _role_groups(text, stack)
    attention = _attention_groups(found, stack, assigned.blocks, config)
    towers = tuple(_tower(found.modules[path], path) for path in stack.towers)
    embed, head = found.modules.get(ends.embed), found.modules.get(ends.head)
    tied = head is not None and embed is not None and read(head, "weight") is read(embed, "weight")
    kind, theta = _rope(model, stack, config)
    dtype = read(model.config, "dtype") or read(config, "dtype")
    quantization = _quantization(model.config)
    return ArchitectureProfile(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        decoder=stack.path,
        layers=len(stack.layers),
        layer_classes=tuple(sorted({type(layer).__name__ for layer in stack.layers})),
        hidden_size=_hidden_size(config, found, text),
        vocab_size=ends.vocab_size,
        intermediate_size=_intermediate_size(text),
        context_length=integer(config, *CONTEXT_LENGTH),
        roles=roles,
        attention=attention,
        parameters=sum(tensor.numel() for tensor in model.parameters()),
        role_parameters=_role_parameters(model, found, stack),
        tied_embeddings=tied,
        rope=kind,
        rope_theta=theta,
        final_softcap=read(config, "final_logit_softcapping", "logits_soft_cap"),
        experts=_experts(roles),
        experts_per_token=(integer(config, *EXPERTS_PER_TOKEN) or 0) if _experts(roles) else 0,
        dtype=str(dtype).removeprefix("torch.") if dtype is not None else None,
        prequantized=quantization.method if quantization else None,
        quantization=quantization,
        remote_code=remote_code,
        gradient_checkpointing=bool(getattr(model, "supports_gradient_checkpointing", False)),
        backends=_backends(model),
        traits=_traits(text, attention, tied) | (traits_of(quantization) if quantization else frozenset()),
        towers=towers,
        unclassified=(*assigned.unclassified, *_missing(roles)),
    )


def _ends(model: Any, found: Inventory) -> Ends:
    """Input embeddings and output head by what the model returns; a model without a getter for its head by its shape."""
    embed, head = (_path_of(model, getter, found) for getter in ("get_input_embeddings", "get_output_embeddings"))
    rows = found.modules[embed].weight.shape[0] if embed else 0
    if not head and rows:
        wide = [weight for weight in found.weights if weight.kind == "linear" and weight.out_features == rows]
        head = wide[0].path if len(wide) == 1 else ""
    return Ends(embed, head, rows, id(found.modules[embed].weight) if embed else 0)


def _path_of(model: Any, getter: str, found: Inventory) -> str:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError, TypeError):
        return ""
    return next(
        (path for path, other in found.modules.items() if other is module and read(module, "weight") is not None), ""
    )


def _missing(roles: FrozenDict[str, tuple[RoleGroup, ...]]) -> Iterable[Unclassified]:
    for role, what in (("embed", "input embeddings"), ("head", "output head")):
        if role not in roles:
            yield Unclassified(module=f"({role})", why=f"the model does not tell which module is its {what}")


def _role_groups(weights: Sequence[Weight], stack: Stack) -> FrozenDict[str, tuple[RoleGroup, ...]]:
    """Weights of one role, path pattern and size as one group, in the order of ROLES and of the model."""
    experts = _expert_sets(weights)
    layers: dict[tuple[Any, ...], list[int]] = {}
    for weight in weights:
        pattern = weight.path
        count = weight.shape[0] if weight.role.startswith("mlp.experts") and len(weight.shape) == 3 else 0
        found = EXPERT.match(pattern)
        if found and pattern in experts:
            count = experts[pattern]
            if found[2] != "0":
                continue
        if weight.layer is not None:
            pattern = re.sub(rf"(?<=\.){weight.layer}(?=\.|$)", "*", pattern, count=1)
        if found and count and pattern != weight.path:
            pattern = EXPERT.sub(r"\1.*.\3", pattern)
        key = (weight.role, pattern, weight.kind, weight.shape, weight.in_features, weight.out_features, weight.bias, count)
        layers.setdefault(key, []).append(-1 if weight.layer is None else weight.layer)
    groups: dict[str, list[RoleGroup]] = {}
    for (role, pattern, kind, shape, size_in, size_out, bias, count), numbers in layers.items():
        group = RoleGroup(
            pattern=pattern, kind=kind, shape=shape, in_features=size_in, out_features=size_out, bias=bias, experts=count,
            layers=tuple(number for number in numbers if number >= 0),
        )  # fmt: skip
        groups.setdefault(role, []).append(group)
    return FrozenDict({role: tuple(groups[role]) for role in ROLES if role in groups})


def _expert_sets(weights: Sequence[Weight]) -> dict[str, int]:
    """Paths of experts that are modules of their own, to their number, where all of one list are alike."""
    sets: dict[tuple[str, str], list[Weight]] = {}
    for weight in weights:
        found = EXPERT.match(weight.path)
        if found and weight.role == "mlp.experts":
            sets.setdefault((found[1], found[3]), []).append(weight)
    alike = (group for group in sets.values() if len({(weight.shape, weight.bias, weight.kind) for weight in group}) == 1)
    return {
        weight.path: len(group)
        for group in alike
        for weight in group
        if [EXPERT.match(other.path)[2] for other in group] == [str(n) for n in range(len(group))]  # type: ignore[index]
    }


def _attention_groups(found: Inventory, stack: Stack, blocks: dict[str, Heads], config: Any) -> tuple[AttentionGroup, ...]:
    """Layers by their form of attention; a layer with attention and a mixer counts as attention."""
    by_module = {id(found.modules[path]): heads for path, heads in blocks.items()}
    mixers: dict[int, list[str]] = {}
    for weight in found.weights:
        if weight.role == "mixer" and weight.layer is not None:
            mixers.setdefault(weight.layer, []).append(weight.local_name(weight.block))
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, layer in enumerate(stack.layers):
        own = [part for part in layer.modules() if id(part) in by_module]
        keys = []
        for block in own:
            heads = by_module[id(block)]
            parts = list(block.modules())
            window, chunk = window_of(parts, config, number)
            keys.append((*vars(heads).values(), window, chunk, softcap_of(parts, config)))
        kind: AttentionKind = (
            "linear" if any(re.search(r"^v$|v_proj|qkv|value", name) for name in mixers.get(number, ())) else "none"
        )
        for key in dict.fromkeys(keys or [(kind, 0, 0, 0, 0, None, None, None)]):
            groups.setdefault(key, []).append(number)
    return tuple(
        AttentionGroup(
            kind=kind, layers=tuple(layers), heads=heads, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim,
            sliding_window=window, chunk_size=chunk, softcap=softcap,
        )
        for (kind, heads, kv_heads, head_dim, value_dim, window, chunk, softcap), layers in groups.items()
    )  # fmt: skip


def _role_parameters(model: Any, found: Inventory, stack: Stack) -> FrozenDict[str, int]:
    """Every parameter once, under the first role that holds it; the sum is the model's number of parameters."""
    owner: dict[int, str] = {}
    for path in stack.towers:
        owner |= {id(tensor): "towers" for tensor in found.modules[path].parameters()}
    order = {role: number for number, role in enumerate(("embed", *ROLES, ""))}
    for weight in sorted(found.weights, key=lambda weight: order[weight.role]):
        for tensor in weight.tensors:
            owner.setdefault(id(tensor), weight.role or "unclassified")
    mixers = {weight.block for weight in found.weights if weight.role == "mixer" and weight.context == "mixer"}
    for path in mixers:
        for tensor in found.modules[path].parameters():
            owner.setdefault(id(tensor), "mixer")
    counts: dict[str, int] = {}
    for tensor in model.parameters():
        role = owner.get(id(tensor), "other")
        counts[role] = counts.get(role, 0) + tensor.numel()
    return FrozenDict({role: counts[role] for role in (*ROLES, "towers", "other", "unclassified") if role in counts})


def _tower(module: Any, path: str) -> Tower:
    return Tower(module=path, architecture=type(module).__name__, parameters=sum(t.numel() for t in module.parameters()))


def _hidden_size(config: Any, found: Inventory, weights: Sequence[Weight]) -> int:
    """Width of the residual stream: as configured, else that of the norms' vectors or of the embeddings."""
    configured = integer(config, "hidden_size", "d_model", "n_embd")
    if configured:
        return configured
    sizes = [weight.shape[1] for weight in weights if weight.role == "embed"]
    return sizes[0] if sizes else 0


def _intermediate_size(weights: Sequence[Weight]) -> int:
    dense = [weight.in_features or 0 for weight in weights if weight.role == "mlp.down"]
    fused = [weight.in_features or 0 for weight in weights if weight.role == "mlp.experts.down"]
    single = [weight.in_features or 0 for weight in weights if weight.role == "mlp.experts" and weight.part == "down"]
    return max(dense or fused or single or [0])


def _experts(roles: FrozenDict[str, tuple[RoleGroup, ...]]) -> int:
    """The number of routed experts: of those with a down-projection where the sets differ (zero-computation experts)."""
    named = [name for name in ("mlp.experts.down", "mlp.experts") if name in roles]
    return max((group.experts for name in named[:1] for group in roles[name]), default=0)


def _rope(model: Any, stack: Stack, config: Any) -> tuple[str | None, float | None]:
    """Only where a module rotates: some families keep the field in their configuration and never use it."""
    outside = any(
        "rotary" in type(part).__name__.lower() for path, part in model.named_modules() if not stack.in_tower(path)
    )
    if not outside and not integer(config, "rotary_dim"):
        return None, None
    kind, theta = rope_of(config)
    return kind or "default", theta


def _quantization(config: Any) -> Quantization | None:
    """What the checkpoint says about how it is stored: a mapping, or the object that transformers made of it."""
    found = read(config, "quantization_config")
    if found is None:
        return None
    settings = found if isinstance(found, dict) else found.to_dict()
    return read_quantization(json.loads(json.dumps(settings, default=lambda value: getattr(value, "value", str(value)))))


def _backends(model: Any) -> tuple[str, ...]:
    declared = (
        ("sdpa", "_supports_sdpa"),
        ("flash_attention", "_supports_flash_attn"),
        ("flex_attention", "_supports_flex_attn"),
    )
    return ("eager", *(name for name, flag in declared if getattr(model, flag, False)))


def _traits(weights: Sequence[Weight], attention: Sequence[AttentionGroup], tied: bool) -> frozenset[Trait]:
    facts = {
        "model.attention": any(group.kind not in ("linear", "none") for group in attention),
        "model.recurrent": any(weight.role in ("mixer", "attn.conv") for weight in weights),
        "model.moe": any(weight.role.startswith("mlp.experts") for weight in weights),
        "model.tied_embeddings": tied,
        "model.conv1d": any(weight.kind == "conv1d" for weight in weights),
    }
    return frozenset(trait for trait, holds in facts.items() if holds)
