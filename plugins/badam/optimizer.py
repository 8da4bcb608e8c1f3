"""BAdam's step: AdamW on the active block, and the change to the next one."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

from luthier.plugins.badam.blocks import Block

PROGRESS: Final = "badam"


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Whose turn it is: a pass visits each of `blocks` once, for `switch_every` steps."""

    blocks: int
    switch_every: int
    order: Literal["random", "ascending", "descending"]
    seed: int

    def block(self, taken: int) -> int:
        """The block that is active once `taken` steps are done."""
        passes, place = divmod(taken // self.switch_every, self.blocks)
        if self.order == "random":
            numbers = random.Random(f"{self.seed} {passes}")  # noqa: S311
            return numbers.sample(range(self.blocks), self.blocks)[place]
        return place if self.order == "ascending" else self.blocks - 1 - place

    def ends(self, taken: int) -> bool:
        """Whether a turn ends with step `taken`."""
        return self.blocks > 1 and taken % self.switch_every == 0


class BlockAdamW(torch.optim.AdamW):
    """torch's AdamW over `groups`, whose parameters take turns in `blocks`; `options` are AdamW's.

    Only the active block's parameters require a gradient, so that the backward pass computes no other, and only they have
    state. The moments of a block start at zero with each of its turns, as the paper has it, and are freed at its end. The
    number of steps taken goes into the state and decides the block, so that a resumed run goes on in the middle of a pass.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], blocks: Sequence[Block], turns: Turns, **options: Any) -> None:
        super().__init__(groups, **options)
        self.blocks = tuple(blocks)
        self.turns = turns
        self.taken = 0
        self._activate()

    @property
    def active(self) -> int:
        """The number of the block that trains now."""
        return self.turns.block(self.taken)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the active block; the last of its turn hands over to the next block."""
        loss = super().step(closure)
        self.taken += 1
        if self.turns.ends(self.taken):
            self.state.clear()
            self._activate()
        return loss

    def _activate(self) -> None:
        active = self.active
        for number, block in enumerate(self.blocks):
            for parameter in block:
                parameter.requires_grad_(number == active)
                if number != active:
                    parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """torch's, and the steps taken."""
        return {**super().state_dict(), PROGRESS: {"taken": self.taken, **dataclasses.asdict(self.turns)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError where the state is of other blocks or of another order."""
        progress = dict(state_dict[PROGRESS])
        taken = progress.pop("taken")
        if progress != dataclasses.asdict(self.turns):
            raise ValueError(f"it was saved with {progress}, and this run has {dataclasses.asdict(self.turns)}")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != PROGRESS})
        self.taken = taken
        self._activate()
