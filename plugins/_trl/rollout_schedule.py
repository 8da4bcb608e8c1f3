"""Which prompts each micro-batch of a run is about: the run's rollouts, decided beforehand.

    epoch:    seeded permutation of the prompts; one epoch after another
    rollout:  the next prompts_per_step * steps_per_generation prompts, each num_generations times, side by side
    steps:    steps_per_generation * num_iterations optimizer steps from each rollout, of `accumulation` micro-batches

Every micro-batch names the prompts of its whole rollout, as TRL wants it: the first of them makes the answers, and the
others take their parts of those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_WORD = 0xFFFFFFFF


class RolloutSchedule:
    """Stands where a BatchSchedule does; iterating gives row numbers.

    `longest` is the longest prompt and answer together, in tokens: a micro-batch has as many answers as fit into
    `batch_tokens` when all are that long, one at least, and the same number in each.
    """

    packing = False

    def __init__(
        self,
        rows: int,
        *,
        longest: int,
        batch_tokens: int,
        num_generations: int,
        prompts_per_step: int,
        steps_per_generation: int = 1,
        num_iterations: int = 1,
        epochs: float = 1.0,
        max_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        if not rows:
            raise ValueError("a schedule needs prompts")
        self.rows, self.batch_tokens, self._seed = rows, batch_tokens, seed
        self.num_generations = num_generations
        self.prompts = prompts_per_step * steps_per_generation
        self.steps_per_rollout = steps_per_generation * num_iterations
        answers = prompts_per_step * num_generations
        fitting = max(1, batch_tokens // longest)
        self.answers = max(size for size in range(1, min(fitting, answers) + 1) if answers % size == 0)
        self.accumulation = answers // self.answers
        self.oversized = longest > batch_tokens
        rollouts = max(1, math.ceil(round(epochs * rows / self.prompts, 9)))
        self.steps = rollouts * self.steps_per_rollout if max_steps is None else max_steps

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        rollout, prompts = -1, np.empty(0, dtype=np.int64)
        for step in range(self.steps):
            if step // self.steps_per_rollout != rollout:
                rollout = step // self.steps_per_rollout
                prompts = self.rollout(rollout)
            for _ in range(self.accumulation):
                yield np.repeat(prompts, self.num_generations).tolist()

    def rollout(self, number: int) -> npt.NDArray[np.int64]:
        """The prompts of a rollout, int64 (prompts,)."""
        begin = number * self.prompts
        places = np.arange(begin, begin + self.prompts)
        found = np.empty(self.prompts, dtype=np.int64)
        for epoch in np.unique(places // self.rows):
            # RandomState, because numpy promises its stream never to change.
            random = np.random.RandomState([self._seed & _WORD, (self._seed >> 32) & _WORD, int(epoch)])
            order, here = random.permutation(self.rows), places // self.rows == epoch
            found[here] = order[places[here] % self.rows]
        return found

    def epoch_of(self, step: int) -> float:
        """Epochs done after `step` optimizer steps, by prompts that were answered."""
        return math.ceil(step / self.steps_per_rollout) * self.prompts / self.rows
