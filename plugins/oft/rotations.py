"""PEFT's OFT on the chosen modules, and on exactly those."""

from __future__ import annotations

from typing import TYPE_CHECKING

import peft
from torch import nn

from luthier.core.profile import ArchitectureProfile
from luthier.plugins._peft.layers import shortest_targets, task_type, wrap
from luthier.plugins.oft.blocks import selected

if TYPE_CHECKING:
    from luthier.plugins.oft import OftConfig


def attach_oft(model: nn.Module, profile: ArchitectureProfile, config: OftConfig) -> nn.Module:
    """The model wrapped by PEFT, base frozen, rotations in float32 and at the identity.

    Raises NothingPatched when a module of the profile is missing.
    """
    wanted = selected(profile, config).names
    options = peft.OFTConfig(
        r=config.blocks or 0,
        oft_block_size=0 if config.blocks else config.size,
        target_modules=shortest_targets(wanted, {name for name, _ in model.named_modules()}),
        coft=config.constrained,
        eps=config.eps,
        block_share=config.share_blocks,
        use_cayley_neumann=config.cayley == "neumann",
        num_cayley_neumann_terms=config.neumann_terms,
        task_type=task_type(profile),
    )
    adapted: nn.Module = wrap(model, options, wanted, method="oft")
    return adapted
