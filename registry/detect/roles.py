"""From weights to roles: families first, then layer by layer, then what lies around the decoder. What is left is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from luthier.core.extensions import ArchitectureFamily
from luthier.core.profile import Unclassified
from luthier.registry.detect.attention import Heads, MismatchError, name_parts, size_block
from luthier.registry.detect.context import Contexts
from luthier.registry.detect.families import apply_families
from luthier.registry.detect.fields import integer
from luthier.registry.detect.mlp import name_experts, name_mlp
from luthier.registry.detect.stack import Recorded, Stack
from luthier.registry.detect.vocabulary import LAYER_RESIDUAL, POSITION, PROJECT, RESIDUAL, ROUTER_LEAVES, SHARED_GATE
from luthier.registry.detect.weights import Inventory, Weight

DIRECT: Final = {
    "index": "attn.index",
    "norm": "norm",
    "residual": "residual",
    "adapter": "adapter",
    "router": "mlp.router",
    "mixer": "mixer",
}
"""Contexts in which every matrix has the same role."""


@dataclass
class Assigned:
    """What the assignment found: sized attention blocks by path, and everything that was not understood."""

    blocks: dict[str, Heads] = field(default_factory=dict)
    unclassified: list[Unclassified] = field(default_factory=list)


def assign(
    found: Inventory, stack: Stack, declared: Recorded, families: Sequence[ArchitectureFamily], config: Any, ends: Ends
) -> Assigned:
    """Sets `role` on every weight that is understood."""
    result = Assigned()
    for weight in found.weights:
        weight.layer = stack.layer_of(weight.path)
    text = [weight for weight in found.weights if not stack.in_tower(weight.path)]
    result.unclassified += apply_families(families, text)
    contexts = Contexts(found.modules, declared)
    hidden = integer(config, "hidden_size", "d_model", "n_embd") or 0
    inside = [weight for weight in text if weight.layer is not None and not weight.role]
    for weight in inside:
        if weight.kind == "norm":
            weight.role = "norm"
        else:
            contexts.place(weight, f"{stack.path}.{weight.layer}")
            _place_directly(weight)
    _blocks(_open(inside, "attention", "cross"), lambda block: _attention(block, found, config, result))
    _blocks(_open(inside, "experts"), lambda block: name_experts(block, _modules(found, block), hidden))
    _blocks(_open(inside, "mlp", "layer"), lambda block: _mlp(block, found, hidden))
    given = [weight for weight in text if weight.context == "family" and weight.role.startswith("attn.")]
    _blocks(given, lambda block: _attention(block, found, config, result), keep_roles=True)
    for weight in text:
        if weight.layer is None and not weight.role:
            _place_outside(weight, ends)
    result.unclassified += _left_over(text, stack)
    return result


@dataclass(frozen=True)
class Ends:
    """Where tokens enter and leave: paths of the input embeddings and of the output head, and the size of the vocabulary.

    `embed_tensor` is the identity of the embedding matrix, which a second module may hold as well.
    """

    embed: str = ""
    head: str = ""
    vocab_size: int = 0
    embed_tensor: int = 0


def _open(weights: Iterable[Weight], *contexts: str) -> list[Weight]:
    return [weight for weight in weights if not weight.role and weight.context in contexts]


def _place_directly(weight: Weight) -> None:
    name = weight.local_name(weight.block)
    if weight.context in DIRECT:
        weight.role = DIRECT[weight.context]
    elif weight.context == "layer" and name in LAYER_RESIDUAL:
        weight.role = "residual"
    elif weight.kind == "other" and weight.context in ("layer", "mlp") and len(weight.shape) == 3:
        weight.role = "mixer"  # a convolution along the sequence, in the residual stream
    elif name in SHARED_GATE:
        weight.role = "mlp.shared_gate"


def _blocks(weights: Sequence[Weight], name: Callable[[list[Weight]], str], keep_roles: bool = False) -> None:
    """Runs `name` on the weights of each block; a block that it rejects loses its roles, with the reason kept."""
    blocks: dict[str, list[Weight]] = {}
    for weight in weights:
        blocks.setdefault(weight.block, []).append(weight)
    for block in blocks.values():
        problem = name(block)
        for weight in block if problem else ():
            weight.why = weight.why or problem
            if not keep_roles:
                weight.role = ""


def _attention(block: list[Weight], found: Inventory, config: Any, result: Assigned) -> str:
    if block[0].context != "family":
        name_parts(block)
    if block[0].context == "cross":
        parts = {weight.part for weight in block}
        return (
            "" if parts >= {"q", "k", "v", "o"} else "cross-attention without a known " + min({"q", "k", "v", "o"} - parts)
        )
    try:
        result.blocks[block[0].block] = size_block(
            [weight for weight in block if weight.role], _modules(found, block), config
        )
    except MismatchError as error:
        return str(error)
    return ""


def _modules(found: Inventory, block: Sequence[Weight]) -> list[Any]:
    """The modules of a block, outermost first."""
    return list(found.modules[block[0].block].modules())


def _mlp(block: list[Weight], found: Inventory, hidden: int) -> str:
    rest = []
    for weight in block:
        if _is_router(weight, found):
            weight.role = "mlp.router"
        else:
            rest.append(weight)
    fused = [weight for weight in rest if len(weight.shape) == 3]
    if fused:  # shared experts as one parameter
        return name_experts(rest, _modules(found, rest), hidden)
    return name_mlp(rest) if rest else ""


def _is_router(weight: Weight, found: Inventory) -> bool:
    """A projection called a gate or router, beside experts, with one output for each of them."""
    if weight.local_name(weight.block) not in ROUTER_LEAVES or weight.kind != "linear":
        return False
    around = found.modules[weight.module.rpartition(".")[0]]
    experts = [child for name, child in around.named_children() if name.endswith("experts") and "shared" not in name]
    return any(weight.out_features in _expert_counts(child) for child in experts)


def _expert_counts(experts: Any) -> set[int]:
    from torch import nn

    fused = {tensor.shape[0] for tensor in experts.parameters(recurse=False) if tensor.ndim == 3}
    return {len(experts)} if isinstance(experts, nn.ModuleList) else fused


def _place_outside(weight: Weight, ends: Ends) -> None:
    parts = weight.path.split(".")
    name = parts[-1]
    own_head = ends.head.rpartition(".")[0]
    if weight.path == ends.embed or (weight.kind == "embedding" and id(weight.tensors[0]) == ends.embed_tensor):
        weight.role = "embed"
    elif weight.path == ends.head:
        weight.role = "head"
    elif weight.kind == "norm":
        weight.role = "norm"
    elif any(RESIDUAL.search(part) for part in parts):
        weight.role = "residual"
    elif weight.kind in ("embedding", "parameter") and any(POSITION.search(part) for part in parts):
        weight.role = "embed.position"
    elif weight.kind == "embedding":
        weight.role = "embed.extra"
    elif PROJECT.search(name):
        weight.role = "embed.project"
    elif weight.kind == "linear" and (
        (own_head and weight.path.startswith(f"{own_head}.")) or parts[0] in ("lm_head", "cls", "generator_predictions")
    ):
        weight.role = "head.transform"
    else:
        weight.why = "it lies outside the decoder layers, and nothing tells what it is for"


def _left_over(weights: Sequence[Weight], stack: Stack) -> list[Unclassified]:
    """One entry for each pattern of weights without a role; a further list of layers is one entry as a whole."""
    entries: dict[str, str] = {}
    for weight in weights:
        if weight.role and not weight.why:
            continue
        other = next((path for path in stack.others if weight.path.startswith(f"{path}.")), None)
        if other is not None:
            entries[f"{other}.*"] = f"a further list of layers beside the decoder {stack.path}"
            continue
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", weight.path)
        entries.setdefault(pattern, weight.why or "a matrix in the decoder layer, in no module that is understood")
    return [Unclassified(module=module, why=why) for module, why in sorted(entries.items())]
