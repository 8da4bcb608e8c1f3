"""`oft`: orthogonal fine-tuning, which rotates frozen weights (Qiu et al. 2023, arXiv:2306.07280), through PEFT.

In the form of OFTv2, which rotates the activations and never the weight (Qiu et al. 2025, arXiv:2506.19847).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.contracts import Adapter, Declaration, MemoryTerms, Support
from luthier.core.environment import Environment
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn

BLOCK_SIZE = 32
EPS = 6e-5


@dataclass(frozen=True, kw_only=True)
class OftConfig:
    """Options of `oft`."""

    block_size: int | None = option(
        None, "Features that one rotation mixes; must divide the inputs of every target. null stands for 32.", ge=2
    )
    blocks: int | None = option(
        None, "In place of block_size: rotations per module, of inputs / blocks features each.", ge=1
    )
    target: tuple[str, ...] = option(
        ("all",),
        "Roles, role groups or module names to adapt; `all` is every linear projection of the decoder layers, routed "
        "experts excepted.",
    )
    exclude: tuple[str, ...] = option((), "What to leave out of target, in the same words.")
    layers: tuple[int, ...] | None = option(
        None, "Only these decoder layers, negative numbers counted from the end; null stands for all."
    )
    share_blocks: bool = option(False, "One rotation per module, used for all of its blocks.")
    cayley: Literal["neumann", "exact"] = option(
        "neumann", "How a rotation is made from its parameters: by the first terms of a series, or by solving for it."
    )
    neumann_terms: int = option(5, "Terms of that series: powers 0 to n - 1. Without a meaning for `exact`.", ge=4)
    constrained: bool = option(False, "COFT: every block is held within a distance of eps / sqrt(blocks) of no rotation.")
    eps: float = option(EPS, "Radius of COFT, over all blocks of a module.", gt=0)

    def __post_init__(self) -> None:
        if self.block_size is not None and self.blocks is not None:
            raise ValueError("give block_size or blocks, not both: their product is the number of inputs")
        if self.cayley == "exact" and self.neumann_terms != 5:
            raise ValueError("neumann_terms: belongs to `cayley: neumann`")
        if self.eps != EPS and not self.constrained:
            raise ValueError("eps: belongs to `constrained: true`")

    @property
    def size(self) -> int:
        """Features of a block, where their number and not that of the blocks was given."""
        return self.block_size or BLOCK_SIZE

    def size_for(self, inputs: int) -> int:
        """Features of one block of a module with this many inputs; 0 where the blocks do not divide them."""
        number = self.blocks or self.size
        if inputs % number:
            return 0
        return inputs // self.blocks if self.blocks else self.size


def supports(profile: ArchitectureProfile, environment: Environment, config: OftConfig) -> Support:
    """No where a target is not made of torch's linear layers, or where the blocks do not divide its inputs."""
    from luthier.plugins.oft import blocks

    return blocks.check(profile, config)


def declares(profile: ArchitectureProfile, config: OftConfig) -> Declaration:
    """Checkpoints that arrive quantised by other means than bitsandbytes have to be dequantised first."""
    stored = profile.quantization
    if stored is None or stored.method == "bitsandbytes":
        return Declaration()
    reason = f"of quantised layers PEFT's OFT was tried on bitsandbytes' only, and these are {stored.method}"
    return Declaration(conflicts=frozenset({"model.prequantized"}), reasons=FrozenDict({"model.prequantized": reason}))


def memory(profile: ArchitectureProfile, config: OftConfig) -> MemoryTerms:
    """b (b - 1) / 2 float32 parameters for every block of b features; what each rotation is made of on the way."""
    from luthier.plugins.oft import blocks

    return blocks.terms(profile, config)


def attach(model: nn.Module, profile: ArchitectureProfile, config: OftConfig) -> nn.Module:
    from luthier.plugins.oft.rotations import attach_oft

    return attach_oft(model, profile, config)


def merge(model: Any) -> nn.Module:
    """The base model with every weight W replaced by W R^T."""
    merged: nn.Module = model.merge_and_unload()
    return merged


@hookimpl
def luthier_adapters() -> Iterable[Adapter[OftConfig]]:
    yield Adapter(
        name="oft",
        summary="Rotates the inputs of frozen weights, block by block.",
        config=OftConfig,
        provides=frozenset(
            {"base.frozen", "adapter.mergeable", "adapter.detachable", "adapter.copies", "reference.by_disabling"}
        ),
        declares=declares,
        packages=("peft>=0.18",),
        supports=supports,
        attach=attach,
        merge=merge,
        memory=memory,
        reference="Qiu et al. 2023, Controlling Text-to-Image Diffusion by Orthogonal Finetuning, arXiv:2306.07280; "
        "Qiu et al. 2025, Orthogonal Finetuning Made Scalable, arXiv:2506.19847",
    )
