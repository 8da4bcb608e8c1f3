"""Which weights bitsandbytes stores in fewer bits, how transformers is told, and what they then take.

Quantised are the linear projections of attention and MLP in the decoder layers, experts included where each is a linear
layer. All else keeps the run's precision: embeddings, output head, norms, routers, and the projections of state-space
layers, whose code reads the weights directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.contracts import MemoryTerms, Support
from luthier.core.profile import ROLE_GROUPS, ArchitectureProfile
from luthier.core.targets import Selection, Target, check, every_target, matching

PACKAGES: Final = ("bitsandbytes>=0.49",)
SKIP_DOC: Final = (
    "Roles, role groups, ends of module names or patterns that stay in the run's precision, beside the output head and all "
    "that is no projection of a decoder layer."
)
GROUPS: Final = ("attn", "cross", "mlp", "experts")
ROLES: Final = frozenset(role for group in GROUPS for role in ROLE_GROUPS[group])
# Linear layers of a class of their own, which transformers' conversion passes over: by model type, as ends of names or
# patterns. Over the whole causal-LM mapping of transformers 5.23 there are these two (tests/detect/test_quantisable.py).
UNCONVERTED: Final[dict[str, tuple[str, ...]]] = {"falcon": ("*",), "deepseek_v4": ("self_attn.o_a_proj",)}


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where the weights of a model's linear layers end up.

    quantised   projections that are stored in fewer bits
    linear      every other linear layer that detection knows: it has to be named, else transformers would quantise it
    fused       expert weights in one 3-D parameter a layer, which bitsandbytes has no layer for
    unmatched   words of `skip` that mean nothing in this model
    """

    quantised: tuple[Target, ...]
    linear: tuple[Target, ...]
    fused: tuple[Target, ...]
    unmatched: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """How many numbers are stored in fewer bits."""
        return sum(math.prod(target.group.shape) for target in self.quantised)


def storage_of(profile: ArchitectureProfile, skip: Sequence[str]) -> Storage:
    """Which linear layers are quantised when `skip` is left out, from roles alone."""
    targets = every_target(profile)
    kept: set[str] = set()
    unmatched = []
    for word in (*skip, *UNCONVERTED.get(profile.model_type, ())):
        matched = matching(word, targets)
        kept.update(target.name for target in matched)
        if not matched and word in skip:
            unmatched.append(word)
    wanted = [target for target in targets if target.is_linear and target.role in ROLES and target.name not in kept]
    names = {target.name for target in wanted}
    return Storage(
        quantised=tuple(wanted),
        linear=tuple(target for target in targets if target.is_linear and target.name not in names),
        fused=tuple(target for target in targets if target.role in ROLE_GROUPS["experts"] and not target.is_linear),
        unmatched=tuple(unmatched),
    )


def untouched_modules(profile: ArchitectureProfile, storage: Storage) -> list[str]:
    """What transformers is told to leave alone: full module names, so that nothing else is meant by them."""
    others = [tower.module for tower in profile.towers]
    others += [item.module for item in profile.unclassified if not item.module.startswith("(")]
    return [*(target.name for target in storage.linear), *others]


def support(profile: ArchitectureProfile, skip: Sequence[str]) -> Support:
    """No where `skip` or the model leaves nothing to quantise; a note with the share that stays where experts are fused."""
    storage = storage_of(profile, skip)
    if storage.unmatched:
        answer = check(profile, Selection(targets=storage.quantised, unmatched=storage.unmatched))
        return Support.no(f"skip: {answer.reason}", answer.fix.replace("take target from", "take skip from"))
    if not storage.quantised:
        own = ", whose linear layers are of a class that transformers does not convert," * (
            profile.model_type in UNCONVERTED
        )
        reason = f"{profile.model_type}{own} has no linear projection of attention or MLP left to quantise"
        return Support.no(reason, "shorten skip" if skip else "train it unquantised")
    share = storage.weights / max(profile.parameters, 1)
    if storage.fused:
        held = sum(math.prod(target.group.shape) for target in storage.fused) / max(profile.parameters, 1)
        return Support.experimental(
            f"{profile.model_type} holds its experts in fused 3-D parameters, which bitsandbytes does not quantise: "
            f"{share:.0%} of the parameters are quantised, and the experts ({held:.0%}) stay in the run's precision"
        )
    return Support.yes(f"{share:.0%} of the parameters are quantised")


def memory(profile: ArchitectureProfile, skip: Sequence[str], matrix_bytes: Callable[[tuple[int, ...]], int]) -> MemoryTerms:
    """The exact bytes of the quantised weights, as an average over them."""
    storage = storage_of(profile, skip)
    stored = sum(matrix_bytes(target_shape(target)) for target in storage.quantised)
    numbers = storage.weights
    return MemoryTerms(weight_bytes=stored / numbers, stored_parameters=numbers) if numbers else MemoryTerms()


def target_shape(target: Target) -> tuple[int, ...]:
    """(out_features, in_features): Conv1D weights are turned before they are quantised."""
    return target.group.shape[::-1] if target.group.kind == "conv1d" else target.group.shape


def load_options(profile: ArchitectureProfile, skip: Sequence[str], **settings: Any) -> dict[str, object]:
    """`from_pretrained`'s quantisation as plain data, with what stays out of it by name."""
    storage = storage_of(profile, skip)
    plain = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": untouched_modules(profile, storage), **settings}
    return {"quantization_config": plain}
