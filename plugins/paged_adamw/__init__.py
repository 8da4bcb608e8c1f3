"""`paged_adamw`, `paged_adamw_8bit`: AdamW whose state may leave the device for the host's memory, through bitsandbytes.

The state lies in CUDA's unified memory: the driver moves its pages to the host when the device is full, and back for the
step (Dettmers et al. 2023, arXiv:2305.14314, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.contracts import AfterStep, MemoryTerms, OptimizerMethod, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions
from luthier.core.profile import ArchitectureProfile
from luthier.plugins._bitsandbytes.adam_states import (
    BYTES_8BIT,
    BYTES_32BIT,
    REQUIREMENT,
    EightBitOptions,
    state_8bit,
    state_32bit,
)

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class PagedAdamWConfig(AdamOptions):
    """Options of `paged_adamw`, with those of every optimizer."""


@dataclass(frozen=True, kw_only=True)
class PagedAdamW8bitConfig(EightBitOptions):
    """Options of `paged_adamw_8bit`, with those of every optimizer."""


def supports(profile: ArchitectureProfile, environment: Environment, config: AdamOptions) -> Support:
    """Missing without CUDA: bitsandbytes would warn and keep plain state."""
    if environment.device != "cuda":
        return Support.missing(
            f"paged state needs CUDA's unified memory, and this run is on {environment.device}",
            "run it on a CUDA device, or take adamw or adamw_8bit",
        )
    return Support.yes()


def build(model: nn.Module, config: AdamOptions, profile: ArchitectureProfile) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """bitsandbytes' paged AdamW over the trainable parameters; tensors under 100,000 numbers are not worth a page."""
    from luthier.plugins._bitsandbytes.adam import adamw

    return adamw(model, config, profile, paged=True), ()


def memory(profile: ArchitectureProfile, config: AdamOptions) -> MemoryTerms:
    """All of the state, as if it stayed on the device: where the prediction exceeds it, that much is paged out."""
    if isinstance(config, EightBitOptions):
        return MemoryTerms(optimizer_bytes=BYTES_8BIT, optimizer_state=state_8bit(config))
    return MemoryTerms(optimizer_bytes=BYTES_32BIT, optimizer_state=state_32bit)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[Any]]:
    paged = "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314"
    yield OptimizerMethod(
        name="paged_adamw",
        summary="AdamW with float32 state that moves to the host when the device is full.",
        config=PagedAdamWConfig,
        claims=frozenset({"optimizer.step"}),
        packages=(REQUIREMENT,),
        supports=supports,
        build=build,
        memory=memory,
        reference=paged,
    )
    yield OptimizerMethod(
        name="paged_adamw_8bit",
        summary="8-bit AdamW with state that moves to the host when the device is full.",
        config=PagedAdamW8bitConfig,
        claims=frozenset({"optimizer.step"}),
        packages=(REQUIREMENT,),
        supports=supports,
        build=build,
        memory=memory,
        reference=paged,
    )
