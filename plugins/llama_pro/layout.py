"""Where the new layers of `llama_pro` go, what they are made of, and whether a model's layers can be silenced."""

from __future__ import annotations

from typing import Final

from luthier.core.contracts import MemoryTerms, Support
from luthier.core.profile import ArchitectureProfile
from luthier.core.scoring import score_targets
from luthier.core.targets import Target, every_target, whole

OUTPUTS: Final = ("attn.o", "mlp.down", "mlp.experts.down")
SUMMED_INSIDE: Final = frozenset({"norm", "mlp.router", "mlp.shared_gate"})


def templates(layers: int, blocks: int) -> tuple[int, ...]:
    """The old layers that are copied, each into a new one right after it: the last of each of `blocks` equal groups.

    For 32 layers and 8 blocks layers 3, 7, ..., 31, as in the paper.
    """
    return tuple((number + 1) * layers // blocks - 1 for number in range(blocks))


def layer_targets(profile: ArchitectureProfile, layer: int) -> list[Target]:
    """The modules of one decoder layer."""
    return [target for target in every_target(profile) if target.layer == layer]


def check(profile: ArchitectureProfile, blocks: int) -> Support:
    """No with the reason why these layers cannot be added."""
    model = profile.model_type
    if blocks > profile.layers:
        reason = f"blocks: {blocks} new layers, and {model} has {profile.layers} to put them after"
        return Support.no(reason, f"take at most {profile.layers} blocks")
    for layer in sorted(set(templates(profile.layers, blocks))):
        roles = {target.role for target in layer_targets(profile, layer)}
        strange = sorted(role for role in roles - SUMMED_INSIDE if not role.startswith(("attn.", "mlp.")))
        if "mlp.experts" in roles:
            strange.append("mlp.experts")
        if strange:
            return Support.no(
                f"layer {layer} of {model} has modules of role {strange[0]}, and how to switch off what they add to the "
                "residual stream is not known",
                "take `freeze`",
            )
        if "attn.o" not in roles or not roles & {"mlp.down", "mlp.experts.down"}:
            return Support.no(
                f"in layer {layer} of {model} the output projections of attention and MLP were not both recognised",
                "take `freeze`, or see `luthier profile`",
            )
    if profile.unclassified:
        where = profile.unclassified[0].module
        return Support.no(f"{where} of {model} was not recognised: it may add to the residual stream", "take `freeze`")
    return Support.yes()


def terms(profile: ArchitectureProfile, blocks: int) -> MemoryTerms:
    """The parameters of the copied layers, and the part of the layers, old and new, that keep activations."""
    if not 0 < blocks <= profile.layers:
        return MemoryTerms()
    copied = templates(profile.layers, blocks)
    matrices = whole(profile, [one for layer in copied for one in layer_targets(profile, layer)], layers=len(copied))
    added = sum(matrix.size * matrix.count for matrix in matrices)
    head = whole(profile, score_targets(profile))
    frozen_below = copied[0] + 1
    return MemoryTerms(
        trainable=added + sum(matrix.size for matrix in head),
        added=added,
        matrices=(*matrices, *head),
        activation_scale=(profile.layers + blocks - frozen_below) / profile.layers,
    )
