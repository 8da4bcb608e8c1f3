"""`sdpa`: torch's scaled_dot_product_attention, which takes the best fused kernel the device has."""

from __future__ import annotations

from collections.abc import Iterable

from luthier.core.contracts import AttentionKernel, Declaration, MemoryTerms, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import NoOptions
from luthier.core.packed_masks import packed_by_mask
from luthier.core.profile import ArchitectureProfile


def supports(profile: ArchitectureProfile, environment: Environment, config: NoOptions) -> Support:
    """No where transformers' class of the model does not offer it, or where there is no attention at all."""
    if not profile.has_attention:
        return Support.no(f"{profile.model_type} has no softmax attention")
    if "sdpa" not in profile.backends:
        return Support.no(f"transformers' {profile.architecture} does not offer it", "take attention: eager")
    return Support.yes()


def declares(profile: ArchitectureProfile, config: NoOptions) -> Declaration:
    """Packed documents are kept apart by transformers' mask, where the model's class has it made with positions."""
    return packed_by_mask(profile)


def memory(profile: ArchitectureProfile, config: NoOptions) -> MemoryTerms:
    """Packed documents are told apart by one boolean mask, of which torch keeps a copy in numbers for each layer."""
    layers = sum(len(group.layers) for group in profile.attention if group.heads)
    return MemoryTerms(pair_bytes=lambda width: layers * width + 1)


@hookimpl
def luthier_attention_kernels() -> Iterable[AttentionKernel[NoOptions]]:
    yield AttentionKernel(
        name="sdpa",
        summary="torch's fused scaled_dot_product_attention.",
        claims=frozenset({"attention.forward"}),
        numerics="close",
        supports=supports,
        declares=declares,
        memory=memory,
        implementation="sdpa",
        priority=100,
        reference="https://pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html",
    )
