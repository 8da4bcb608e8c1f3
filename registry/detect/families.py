"""Architectures that need a word of data: what lies beside the usual containers, or has no container at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from luthier.core.extensions import ArchitectureFamily
from luthier.core.profile import ROLES, Unclassified
from luthier.registry.detect.weights import Weight

BUILT_IN: Final = (
    ArchitectureFamily(
        name="zamba",  # the projection between the shared attention block and the Mamba layer, called only "linear"
        model_types=("zamba", "zamba2"),
        roles={"residual": "model.layers.*.linear"},
    ),
    ArchitectureFamily(
        name="xlm",  # no decoder layer: four parallel lists of attentions, MLPs and norms
        model_types=("xlm", "flaubert"),
        decoder="transformer.attentions",
        roles={
            "attn.q": "transformer.attentions.*.q_lin",
            "attn.k": "transformer.attentions.*.k_lin",
            "attn.v": "transformer.attentions.*.v_lin",
            "attn.o": "transformer.attentions.*.out_lin",
            "mlp.up": "transformer.ffns.*.lin1",
            "mlp.down": "transformer.ffns.*.lin2",
        },
    ),
)


def families_for(model_type: str, families: Sequence[ArchitectureFamily]) -> list[ArchitectureFamily]:
    """Those that describe this model type: the plugins' first, so that they can correct ours."""
    return [family for family in (*families, *BUILT_IN) if model_type in family.model_types]


def apply_families(families: Sequence[ArchitectureFamily], weights: Sequence[Weight]) -> list[Unclassified]:
    """Gives roles by the families' patterns; returns each pattern that names no module or no known role."""
    problems: list[Unclassified] = []
    for family in families:
        for role, pattern in family.roles.items():
            if role not in ROLES:
                problems.append(
                    Unclassified(module=pattern, why=f"architecture family {family.name!r} names no known role: {role!r}")
                )
                continue
            expression = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))
            matched = [
                (weight, found) for weight in weights if not weight.role and (found := expression.fullmatch(weight.path))
            ]
            if not matched and not any(expression.fullmatch(weight.path) for weight in weights):
                why = f"architecture family {family.name!r} names this for {role!r}, and no module is called so"
                problems.append(Unclassified(module=pattern, why=why))
            for weight, found in matched:
                weight.role, weight.part, weight.context = role, role.rpartition(".")[2], "family"
                weight.block = weight.path.rpartition(".")[0]
                weight.layer = int(found[1]) if found.groups() else weight.layer
    return problems
