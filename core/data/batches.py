"""The run's micro-batches, decided beforehand: the same rows and seed give the same batches on every machine.

    epoch:  seeded shuffle -> windows -> sorted by length inside each -> filled to batch_tokens -> batches shuffled
    packed: seeded shuffle -> windows -> each packed into batch_tokens (packing.py)             -> batches shuffled
    run:    the epochs' batches one after another; `accumulation` of them make one optimizer step

Rows of similar length stand together, so that little is padding, while the windows keep an epoch's order random (Hugging
Face's group_by_length does the same with windows of 50 batches). Packed, a long row stands beside short ones; the windows
let it meet others in each epoch, and are larger, because what the last batches of a window have left over stays empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from luthier.core.data.packing import pack

WINDOW_BATCHES: Final = 50
PACKED_WINDOW_BATCHES: Final = 200
_WORD: Final = 0xFFFFFFFF


class BatchSchedule:
    """Iterates over the run's micro-batches, each a list of row numbers; can be a DataLoader's `batch_sampler`.

    `lengths` are the rows' tokens. A batch's rows times its longest row are at most `batch_tokens`; with `packing`, where
    rows stand one after another and nothing is padding, the sum of its rows is. A row longer than that is a batch of its
    own, counted in `oversized`. `epochs` may be a fraction; `max_steps` optimizer steps, where given, decide instead, be it
    fewer or more. Raises ValueError for no rows or an empty row.
    """

    def __init__(
        self,
        lengths: Sequence[int] | npt.NDArray[np.int64],
        *,
        batch_tokens: int,
        accumulation: int = 1,
        epochs: float = 1.0,
        seed: int = 0,
        max_steps: int | None = None,
        packing: bool = False,
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if not len(self._lengths) or self._lengths.min() < 1:
            raise ValueError("a schedule needs rows of at least one token each")
        if batch_tokens < 1 or accumulation < 1 or epochs <= 0 or (max_steps is not None and max_steps < 1):
            raise ValueError("batch_tokens, accumulation, epochs and max_steps must be positive")
        self.batch_tokens = batch_tokens
        self.accumulation = accumulation
        self.packing = packing
        self._seed = seed
        first = self._epoch(0)
        self.steps_per_epoch: int = math.ceil(len(first) / accumulation)
        self._batches = self._run(first, epochs, None if max_steps is None else max_steps * accumulation)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self._batches)

    @property
    def batches(self) -> list[list[int]]:
        """Every micro-batch of the run, in order."""
        return list(self)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run; the last one may have fewer micro-batches."""
        return math.ceil(len(self) / self.accumulation)

    @property
    def oversized(self) -> int:
        """Rows longer than `batch_tokens`."""
        return int((self._lengths > self.batch_tokens).sum())

    @cached_property
    def tokens(self) -> int:
        """Tokens of the run, padding not counted."""
        return sum(int(self._lengths[batch].sum()) for batch in self._batches)

    @cached_property
    def padding(self) -> float:
        """The part of all positions that is padding, from 0 to below 1; 0 with packing."""
        if self.packing:
            return 0.0
        positions = sum(len(batch) * int(self._lengths[batch].max()) for batch in self._batches)
        return 1 - self.tokens / positions

    @cached_property
    def efficiency(self) -> float:
        """Tokens of the run over `batch_tokens` of every batch, above 0 and at most 1; one with an oversized row is full."""
        room = sum(max(self.batch_tokens, int(self._lengths[batch].sum())) for batch in self._batches)
        return self.tokens / room

    @cached_property
    def _rows_seen(self) -> npt.NDArray[np.int64]:
        return np.cumsum([0, *(len(batch) for batch in self._batches)])

    def epoch_of(self, step: int) -> float:
        """Epochs done after `step` optimizer steps, by rows."""
        batches = min(max(step, 0) * self.accumulation, len(self))
        return int(self._rows_seen[batches]) / len(self._lengths)

    def _run(self, epoch: list[npt.NDArray[np.int64]], epochs: float, wanted: int | None) -> list[npt.NDArray[np.int64]]:
        batches = list(epoch)
        number = 1
        while len(batches) < wanted if wanted is not None else number < epochs:
            epoch = self._epoch(number)
            batches += epoch
            number += 1
        if wanted is not None:
            return batches[:wanted]
        # `number` whole epochs are there; of the last one only a part may be wanted.
        # 1 - 0.8 is a little less than 0.2 in binary, and must not cost or add a batch.
        surplus = round(number - epochs, 9)
        return batches[: len(batches) - math.floor(round(surplus * len(epoch), 6))]

    def _epoch(self, number: int) -> list[npt.NDArray[np.int64]]:
        # RandomState, because numpy promises its stream never to change; default_rng's may, and with it every run.
        random = np.random.RandomState([self._seed & _WORD, (self._seed >> 32) & _WORD, number])
        order = random.permutation(len(self._lengths)).astype(np.int64)
        per_batch = max(1, self.batch_tokens // max(1, int(self._lengths.mean())))
        window = (PACKED_WINDOW_BATCHES if self.packing else WINDOW_BATCHES) * per_batch
        batches: list[npt.NDArray[np.int64]] = []
        for begin in range(0, len(order), window):
            rows = order[begin : begin + window]
            if self.packing:
                batches += [rows[places] for places in pack(self._lengths[rows], self.batch_tokens)]
            else:
                batches += self._fill(rows)
        return [batches[place] for place in random.permutation(len(batches))]

    def _fill(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Cut rows, sorted by length, where the next one would make the batch too large."""
        rows = rows[np.argsort(self._lengths[rows], kind="stable")]
        cuts, begin = [], 0
        for place, length in enumerate(self._lengths[rows].tolist()):
            if place > begin and (place - begin + 1) * length > self.batch_tokens:
                cuts.append(place)
                begin = place
        return np.split(rows, cuts)
