"""`eager`: attention in plain matrix products, the reference that other kernels are compared with."""

from __future__ import annotations

from collections.abc import Iterable

from luthier.core.contracts import AttentionKernel, Declaration, MemoryTerms
from luthier.core.hookspecs import hookimpl
from luthier.core.options import NoOptions
from luthier.core.packed_masks import packed_by_mask
from luthier.core.profile import ArchitectureProfile


def declares(profile: ArchitectureProfile, config: NoOptions) -> Declaration:
    """Packed documents are kept apart by transformers' mask, where the model's class has it made with positions."""
    return packed_by_mask(profile)


def memory(profile: ArchitectureProfile, config: NoOptions) -> MemoryTerms:
    """The softmax of every head and layer, kept in float32 and, where that is another, in the compute format."""
    scores = sum(len(group.layers) * group.heads for group in profile.attention)
    return MemoryTerms(pair_bytes=lambda width: scores * (4 + (width if width < 4 else 0)))


@hookimpl
def luthier_attention_kernels() -> Iterable[AttentionKernel[NoOptions]]:
    yield AttentionKernel(
        name="eager",
        summary="Plain matrix products; works with every model.",
        claims=frozenset({"attention.forward"}),
        declares=declares,
        memory=memory,
        implementation="eager",
        priority=10,
        reference="Vaswani et al. 2017, Attention Is All You Need, section 3.2.1, arXiv:1706.03762",
    )
