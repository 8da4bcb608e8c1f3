"""Where the trainer's micro-batches come from, and where it stands in them: rows prepared beforehand, or a stream.

Prepared rows are numbered, and transformers' Trainer finds its place among them by counting. A stream keeps its place
itself: it is saved with each checkpoint as it was after the micro-batches of the last step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from luthier.core.data.stream import StreamSchedule
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.core.data import BatchSchedule

Schedule: TypeAlias = "BatchSchedule | StreamSchedule"


class MicroBatches(IterableDataset[Any]):
    """A stream as torch's data set: each item is a list of examples, and the length that of the whole run."""

    def __init__(self, stream: StreamSchedule) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._stream)


def train_loader(schedule: Schedule, rows: Any, collate: Any, *, pin_memory: bool) -> DataLoader[Any]:
    """Collated micro-batches in the order of the schedule.

    It has a generator of its own, so that fetching draws none of the model's random numbers, and no worker processes: with
    them, a stream would be ahead of what has trained.
    """
    options: dict[str, Any] = {"collate_fn": collate, "pin_memory": pin_memory, "generator": torch.Generator()}
    if isinstance(schedule, StreamSchedule):
        return DataLoader(MicroBatches(schedule), batch_size=None, **options)
    return DataLoader(rows, batch_sampler=schedule, **options)


def schedule_fingerprint(schedule: Schedule, rows: Any) -> str:
    """Sixteen hex digits over the rows' tokens and their order: a run resumes only into the same batches."""
    if isinstance(schedule, StreamSchedule):
        return schedule.fingerprint
    digest = hashlib.sha256(str(getattr(rows, "digest", "")).encode())
    for batch in schedule:
        digest.update(np.asarray([len(batch), *batch], dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def place_after(schedule: Schedule, step: int) -> dict[str, Any]:
    """What a checkpoint after `step` optimizer steps keeps about the data besides the number of the step."""
    if not isinstance(schedule, StreamSchedule):
        return {}
    if schedule.given != step * schedule.accumulation:
        raise LuthierError(
            f"the stream gave {schedule.given} micro-batches, and {step * schedule.accumulation} have trained",
            where="data.streaming",
            fix="this is a fault of Luthier with this version of transformers, which reads ahead: please report it",
        )
    return {"stream": schedule.state()}


def go_on_after(schedule: Schedule, progress: Mapping[str, Any]) -> None:
    """Put a stream to where `place_after` found it; raises OutputError where its rows are others now."""
    if isinstance(schedule, StreamSchedule):
        schedule.restore(progress["stream"])
