"""`llama_pro`: new decoder layers between the old ones, which alone train (Wu et al. 2024, arXiv:2401.02415)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import Adapter, MemoryTerms, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class LlamaProConfig:
    """Options of `llama_pro`."""

    blocks: int = option(
        1, "New decoder layers, at most as many as there are. Each follows one old layer and starts as its copy.", ge=1
    )


def supports(profile: ArchitectureProfile, environment: Environment, config: LlamaProConfig) -> Support:
    """No where a layer writes to the residual stream through more than attention and MLP, or where there are too few."""
    from luthier.plugins.llama_pro import layout

    return layout.check(profile, config.blocks)


def memory(profile: ArchitectureProfile, config: LlamaProConfig) -> MemoryTerms:
    """The new layers whole, in the format of the weights; no activation is kept below the first of them."""
    from luthier.plugins.llama_pro import layout

    return layout.terms(profile, config.blocks)


def attach(model: nn.Module, profile: ArchitectureProfile, config: LlamaProConfig) -> nn.Module:
    from luthier.plugins.llama_pro.expansion import expand

    return expand(model, profile, config.blocks)


@hookimpl
def luthier_adapters() -> Iterable[Adapter[LlamaProConfig]]:
    yield Adapter(
        name="llama_pro",
        summary="New decoder layers, silent at first, train between frozen ones.",
        config=LlamaProConfig,
        provides=frozenset({"base.partly_frozen", "params.full_rank"}),
        conflicts=frozenset({"weights.quantized", "model.prequantized"}),
        supports=supports,
        attach=attach,
        merge=lambda model: model,
        memory=memory,
        reference="Wu et al. 2024, LLaMA Pro: Progressive LLaMA with Block Expansion, arXiv:2401.02415",
    )
