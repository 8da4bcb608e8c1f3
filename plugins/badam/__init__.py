"""`badam`: AdamW on one block of layers at a time, the others frozen meanwhile (Luo et al. 2024, arXiv:2404.02827).

Ours, over torch's AdamW. The authors' `badam` 1.4 knows layers by the name `layers` (it fails on GPT-2), draws the order
from torch's global generator, does not save which block is active, keeps float32 copies whatever the weights are, and
prints. tests/methods/test_badam.py compares the two where it works.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.contracts import AfterStep, MemoryTerms, OptimizerMethod
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions, decay_groups, fusible
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.scoring import score_modules
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class BAdamConfig(AdamOptions):
    """Options of `badam`, with those of every optimizer."""

    switch_every: int = option(50, "Steps on one block before the next.", unit="steps", ge=1)
    order: Literal["random", "ascending", "descending"] = option(
        "random",
        "The order of the blocks: drawn anew for every pass over all of them, from the input up, or from the output down.",
    )
    layers_per_block: int = option(1, "Decoder layers in one block.", ge=1)
    embeddings: bool = option(
        True,
        "Train the matrices outside the decoder layers (embeddings, output head) too, each as a block of its own; `false` "
        "leaves them as they are, as in the paper.",
    )
    seed: int = option(0, "Decides the random order.", ge=0)


def build(model: nn.Module, config: BAdamConfig, profile: ArchitectureProfile) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """BlockAdamW over the parameters that train, cut into blocks; all but the first block's are frozen when it returns."""
    from luthier.plugins.badam.blocks import cut
    from luthier.plugins.badam.optimizer import BlockAdamW, Turns

    heads = score_modules(profile)
    blocks = cut(model, profile.decoder, layers=config.layers_per_block, outside=config.embeddings, heads=heads)
    groups = decay_groups(model, config.weight_decay)
    turns = Turns(blocks=len(blocks), switch_every=config.switch_every, order=config.order, seed=config.seed)
    options = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": fusible(groups)}
    return BlockAdamW(groups, blocks, turns, **options), ()


def memory(profile: ArchitectureProfile, config: BAdamConfig) -> MemoryTerms:
    """Gradients and two moments for the largest block only."""
    from luthier.plugins.badam.sizes import largest_block

    return MemoryTerms(optimizer_copies=2, moved_at_once=lambda trained: largest_block(profile, config, trained))


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[BAdamConfig]]:
    yield OptimizerMethod(
        name="badam",
        summary="AdamW on one block of layers at a time: gradients and state for that block only.",
        config=BAdamConfig,
        requires=(any_of("params.full_rank"),),
        claims=frozenset({"optimizer.step"}),
        build=build,
        memory=memory,
        reference="Luo, Yu and Li 2024, BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language "
        "Models, arXiv:2404.02827",
    )
