"""MLP blocks and experts: parts by name, decided by shapes.

    up.out = gate.out = down.in,   gate_up.out = 2 * down.in,   up.in = down.out

A first matrix twice as wide as the last one takes holds gate and up, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.registry.detect.vocabulary import LAYER_MLP, MLP_NAMES
from luthier.registry.detect.weights import Weight


def name_mlp(weights: Sequence[Weight]) -> str:
    """Gives the matrices of one MLP block their roles; returns what is wrong with the block, or ""."""
    named: dict[str, Weight] = {}
    for weight in weights:
        name = weight.local_name(weight.block)
        part = LAYER_MLP.get(name, "") if weight.context == "layer" else MLP_NAMES.get(name, "")
        if not part:
            if weight.context == "mlp":
                weight.why = f"no part of an MLP is known by the name {name!r}"
        elif part in named:
            return f"two matrices of one MLP could be its {part}: {named[part].path.rsplit('.', 1)[-1]} and {name}"
        else:
            named[part] = weight
    if not named:
        return ""
    if "gate" in named and "up" not in named and "gate_up" not in named:
        named["up"] = named.pop("gate")
    problem = _check(named)
    if problem:
        return problem
    first = named.get("up") or named["gate_up"]
    inner = named["down"].in_features or 0
    if "gate" not in named:
        named = {"down": named["down"]}
        named["gate_up" if first.out_features == 2 * inner else "up"] = first
    for part, weight in named.items():
        weight.part, weight.role = part, f"mlp.{part}"
    return ""


def _check(named: dict[str, Weight]) -> str:
    if "down" not in named:
        return "an MLP without a known down-projection"
    if ("up" in named) == ("gate_up" in named):
        return "an MLP without a known up-projection" if "up" not in named else "an MLP with both up and gate_up"
    down = named["down"]
    first = named.get("up") or named["gate_up"]
    widths = {down.in_features} if "gate" in named else {down.in_features, 2 * (down.in_features or 0)}
    if first.out_features not in widths:
        return f"up gives {first.out_features} features, down takes {down.in_features}"
    if "gate" in named and named["gate"].out_features != down.in_features:
        return f"gate gives {named['gate'].out_features} features, down takes {down.in_features}"
    if first.in_features != down.out_features and first.in_features != _input(named):
        return f"up takes {first.in_features} features, down gives {down.out_features}"
    return ""


def _input(named: dict[str, Weight]) -> int | None:
    """Features that the gate takes: with it, an MLP may take another size than it gives (a shared block)."""
    return named["gate"].in_features if "gate" in named else None


def name_experts(weights: Sequence[Weight], modules: Sequence[Any], hidden_size: int) -> str:
    """Gives the weights of one set of experts their roles; returns what is wrong, or ""."""
    fused = [weight for weight in weights if len(weight.shape) == 3]
    problem = _name_fused(fused, modules, hidden_size) if fused else ""
    if problem:
        return problem
    rest = [weight for weight in weights if len(weight.shape) != 3]
    by_expert: dict[str, dict[str, Weight]] = {}
    for weight in rest:
        name = weight.local_name(weight.block)
        part = MLP_NAMES.get(name)
        if part is None:
            weight.why = f"no part of an expert is known by the name {name!r}"
            continue
        by_expert.setdefault(weight.module.rpartition(".")[0], {})[part] = weight
    for named in by_expert.values():
        if any(weight.kind == "parameter" for weight in named.values()):  # all experts in one 2-D matrix (DBRX)
            wrong = "" if {"up", "gate", "gate_up"} & set(named) and "down" in named else "experts without up or down"
        else:
            if "gate" in named and "up" not in named and "gate_up" not in named:
                named["up"] = named.pop("gate")
            wrong = _check(named)
        if wrong:
            return wrong
        for part, weight in named.items():
            weight.part, weight.role = part, "mlp.experts"
    return ""


def _name_fused(weights: Sequence[Weight], modules: Sequence[Any], hidden_size: int) -> str:
    named: dict[str, Weight] = {}
    for weight in weights:
        part = MLP_NAMES.get(weight.local_name(weight.block))
        if part is None:
            return f"no part of the experts is known by the name {weight.local_name(weight.block)!r}"
        named[part] = weight
    if "down" not in named or len(named) < 2:
        return "experts without a known up- or down-projection"
    down = named.pop("down")
    ways = [way for way in (False, True) if all(_fits(first, down, way) for first in named.values())]
    if not ways:
        shapes = ", ".join(str(weight.shape) for weight in (*named.values(), down))
        return f"the shapes of the experts' matrices do not fit together: {shapes}"
    if len(ways) == 2:  # equal widths of gate and up fit both ways: then the module says, or the hidden size
        said = [module.is_transposed for module in modules if isinstance(getattr(module, "is_transposed", None), bool)]
        ways = said or [way for way in ways if down.shape[2 if way else 1] == hidden_size]
        if len(set(ways)) != 1:
            return "it cannot be told which way the experts' matrices lie: their sizes are equal"
    transposed = ways[0]
    for weight in (*named.values(), down):
        sizes = weight.shape[1:]
        weight.in_features, weight.out_features = sizes if transposed else sizes[::-1]
    for part, weight in named.items():
        gated = weight.out_features == 2 * (down.in_features or 0)
        weight.part, weight.role = part, "mlp.experts.gate_up" if gated else "mlp.experts"
    down.part, down.role = "down", "mlp.experts.down"
    return ""


def _fits(first: Weight, down: Weight, transposed: bool) -> bool:
    """Whether (experts, out, in), or (experts, in, out) when transposed, makes one MLP of both."""
    (a, b), (c, d) = first.shape[1:], down.shape[1:]
    width, hidden, back, inner = (b, a, d, c) if transposed else (a, b, c, d)
    return hidden == back and width in (inner, 2 * inner)
