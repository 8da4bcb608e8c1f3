"""bitsandbytes' AdamW with 32-bit, 8-bit or paged state, made to fit runs that stop and go on.

What bitsandbytes lacks for that, and this adds:

- the width of the state by parameter group. Its own way is a table of the whole process keyed by id(parameter), which
  outlives a run and then applies to whatever parameter gets the same id
- paged state that is paged again after loading; it would come back as plain memory of the device
- one quantisation map for all parameters after loading, where each would hold a copy
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.optim.adamw import AdamW
from torch import Tensor

from luthier.core.optimizing import AdamOptions, trained_parameters
from luthier.core.profile import ArchitectureProfile
from luthier.plugins._bitsandbytes.adam_states import EMBEDDINGS, EightBitOptions

if TYPE_CHECKING:
    from torch import nn

MOMENTS = ("state1", "state2")
MAPS = {"qmap1": "dynamic", "qmap2": "udynamic"}


class BlockwiseAdamW(AdamW):
    """AdamW whose groups each have `optim_bits`, 32 or 8, and whose state loads bit for bit to where it belongs."""

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Asked by bitsandbytes for each parameter and step."""
        return {**super().get_config(gindex, pindex, group), "optim_bits": group["optim_bits"]}

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """As torch's; no tensor is cast, and none is put on the device in one piece with the others."""
        super().load_state_dict(state_dict, move_to_device=False)
        for parameter, state in self.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    state[key] = self._placed(parameter, key, value)

    def _placed(self, parameter: Tensor, key: str, value: Tensor) -> Tensor:
        if key in MOMENTS:
            buffer: Tensor = self.get_state_buffer(parameter, dtype=value.dtype)
            buffer.copy_(value)
            return buffer
        if key in MAPS:
            shared: Tensor = self.name2qmap[MAPS[key]].to(parameter.device)
            self.name2qmap[MAPS[key]] = shared
            # A map of another release means other numbers by the same bytes: then the saved one counts.
            return shared if torch.equal(shared.cpu(), value.cpu()) else value.to(parameter.device)
        return value.to(parameter.device)


def adamw(model: nn.Module, config: AdamOptions, profile: ArchitectureProfile, *, paged: bool = False) -> BlockwiseAdamW:
    """Over the parameters that train: matrices decayed, vectors not; 8-bit state where `config` has its options."""
    eight_bit = config if isinstance(config, EightBitOptions) else None
    wide_parts = [f".{name}." for name in profile.modules(EMBEDDINGS)] if eight_bit and eight_bit.embeddings_32bit else []
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model).items():
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        wide = eight_bit is None or any(part in f".{name}." for part in wide_parts)
        groups.setdefault((decay, 32 if wide else 8), []).append(parameter)
    return BlockwiseAdamW(
        [{"params": params, "weight_decay": decay, "optim_bits": bits} for (decay, bits), params in groups.items()],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        optim_bits=8 if eight_bit else 32,
        min_8bit_size=eight_bit.min_8bit_size if eight_bit else 0,
        is_paged=paged,
    )
