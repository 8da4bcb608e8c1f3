"""`adamw_8bit`: AdamW whose moments take one byte each, through bitsandbytes (Dettmers et al. 2022, arXiv:2110.02861)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import AfterStep, MemoryTerms, OptimizerMethod, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.profile import ArchitectureProfile
from luthier.plugins._bitsandbytes.adam_states import BYTES_8BIT, REQUIREMENT, EightBitOptions, state_8bit

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class AdamW8bitConfig(EightBitOptions):
    """Options of `adamw_8bit`, with those of every optimizer."""


def supports(profile: ArchitectureProfile, environment: Environment, config: AdamW8bitConfig) -> Support:
    if environment.device == "mps":
        return Support.missing("bitsandbytes has no 8-bit optimizer for MPS", "take adamw, or run on CUDA or the CPU")
    return Support.yes()


def build(
    model: nn.Module, config: AdamW8bitConfig, profile: ArchitectureProfile
) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """bitsandbytes' block-wise 8-bit AdamW over the trainable parameters; 32-bit state where the options say so."""
    from luthier.plugins._bitsandbytes.adam import adamw

    return adamw(model, config, profile), ()


def memory(profile: ArchitectureProfile, config: AdamW8bitConfig) -> MemoryTerms:
    """2 bytes and 1/32 for each parameter; 8 for small tensors and embeddings."""
    return MemoryTerms(optimizer_bytes=BYTES_8BIT, optimizer_state=state_8bit(config))


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[AdamW8bitConfig]]:
    yield OptimizerMethod(
        name="adamw_8bit",
        summary="AdamW with moments of one byte, a quarter of the state.",
        config=AdamW8bitConfig,
        claims=frozenset({"optimizer.step"}),
        packages=(REQUIREMENT,),
        supports=supports,
        build=build,
        memory=memory,
        reference="Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861",
    )
