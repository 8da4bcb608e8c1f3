"""Rated answers as a data set and as batches, and prompts with the answers of other rows.

row i            p p p a a       good
row i - 1        q q b b b       bad
mismatched i     p p p b b b     what the estimate of the divergence is made of
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from luthier.core.data import BatchSchedule, Example, Examples
from luthier.core.data.collate import collate
from luthier.core.data.examples import IGNORED
from luthier.plugins._trl.batches import RowBatches

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.runtime import Runtime


class Rated:
    """Rated rows as a map-style data set: item i is {"example", "label", "row", **columns}, whether it is good, and i.

    `columns` has further numbers of each row, float32 (rows,).
    """

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.good: npt.NDArray[np.bool_] = examples.values > 0
        self.columns: dict[str, npt.NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        numbers = {name: float(values[row]) for name, values in self.columns.items()}
        return {"example": self.examples[row], "label": bool(self.good[row]), "row": row, **numbers}

    @property
    def digest(self) -> str:
        """Of the rows' tokens and their order."""
        return self.examples.digest

    def mismatched(self, numbers: Sequence[int], max_length: int) -> tuple[list[Example], int]:
        """The prompt of each of these rows with the answer of the one before, and how many were cut to `max_length` tokens.

        The first gets the last one's answer. A single row gets that of the row before it in the data.
        """
        others = [numbers[-1], *numbers[:-1]] if len(numbers) > 1 else [(numbers[0] - 1) % len(self)]
        made, cut = [], 0
        for prompt, answer in zip(map(self._parts, numbers), map(self._parts, others), strict=True):
            ids = np.concatenate([prompt[0], answer[1]])
            labels = np.concatenate([np.full(len(prompt[0]), IGNORED, dtype=np.int64), answer[2]])
            cut += len(ids) > max_length
            made.append(Example(input_ids=ids[:max_length], labels=labels[:max_length]))
        return made, cut

    def _parts(self, row: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """A row's prompt, its answer, and the labels of that."""
        example = self.examples[row]
        begin = int(np.argmax(example["labels"] != IGNORED))
        return example["input_ids"][:begin], example["input_ids"][begin:], example["labels"][begin:]


def collate_rated(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Items of `Rated` as tensors.

    input_ids, attention_mask, completion_mask   int64 (B, T); the last is 1 where a token is learned
    label, row                                   bool and int64 (B,)
    every column of the rows                     float32 (B,)
    """
    batch = collate([row["example"] for row in rows], pad_token_id)
    batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
    for name in rows[0]:
        if name != "example":
            dtype = {"label": torch.bool, "row": torch.int64}.get(name, torch.float32)
            batch[name] = torch.tensor([row[name] for row in rows], dtype=dtype)
    return batch


def rated_batches(runtime: Runtime) -> RowBatches:
    """The run's micro-batches of rated rows, as `train` asks for."""
    data, options, tokenizer = runtime.data, runtime.config.train, runtime.tokenizer
    assert data is not None
    assert tokenizer is not None
    schedule = BatchSchedule(
        data.train.lengths,
        batch_tokens=options.batch_tokens,
        accumulation=options.accumulation,
        epochs=options.epochs,
        seed=options.seed,
        max_steps=options.max_steps,
    )
    held_out = BatchSchedule(data.eval.lengths, batch_tokens=options.batch_tokens) if data.eval.rows else None
    return RowBatches(
        train=schedule,
        held_out=held_out,
        collate=partial(collate_rated, pad_token_id=tokenizer.pad_token_id),
        first_together=(),
        train_rows=Rated(data.train),
        eval_rows=Rated(data.eval) if held_out is not None else None,
    )
