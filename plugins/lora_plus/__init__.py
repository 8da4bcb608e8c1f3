"""`lora_plus`: AdamW that moves the B of low-rank updates faster than their A (Hayou et al. 2024, arXiv:2402.12354).

Groups of ours over torch's AdamW. PEFT's `create_loraplus_optimizer` makes the same ones for plain LoRA, which
tests/methods/test_lora_plus.py holds against each other; DoRA's magnitudes it would decay, and move at the rate of B.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, MemoryTerms, OptimizerMethod
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions, fusible
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class LoraPlusConfig(AdamOptions):
    """Options of `lora_plus`, with those of every optimizer. `lr` is the rate of A, and of whatever else trains."""

    ratio: float = option(16.0, "The rate of B is `ratio` x `lr`.", ge=1)
    embedding_lr: float = option(1e-6, "Peak learning rate of the updates of embeddings, A and B.", gt=0)


def build(model: nn.Module, config: LoraPlusConfig) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """torch.optim.AdamW over groups with rates of their own, which schedule and warm-up scale alike."""
    import torch

    from luthier.plugins.lora_plus.groups import lora_plus_groups

    groups = lora_plus_groups(model, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fusible(groups)), ()


def memory(profile: ArchitectureProfile, config: LoraPlusConfig) -> MemoryTerms:
    """Two moments per trainable parameter, in its own format."""
    return MemoryTerms(optimizer_copies=2)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[LoraPlusConfig]]:
    yield OptimizerMethod(
        name="lora_plus",
        summary="AdamW that moves the B of low-rank updates faster than their A.",
        config=LoraPlusConfig,
        requires=(any_of("adapter.low_rank"),),
        claims=frozenset({"optimizer.step"}),
        build=build,
        memory=memory,
        reference="Hayou, Ghosh and Yu 2024, LoRA+: Efficient Low Rank Adaptation of Large Models, arXiv:2402.12354",
    )
