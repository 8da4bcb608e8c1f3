"""Rows of preferences as TRL's losses want them: a batch has the chosen answers first, then the rejected ones.

input_ids        p p a a a .   row 0, chosen     completion_mask  0 0 1 1 1 0   what is learned
                 p p p a a a   row 1, chosen                      0 0 0 1 1 1
                 p p b b . .   row 0, rejected                    0 0 1 1 0 0
                 p p p b . .   row 1, rejected                    0 0 0 1 0 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from luthier.core.data import BatchSchedule, Examples
from luthier.core.data.collate import collate
from luthier.core.data.examples import IGNORED
from luthier.core.language_modeling import Batches

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.runtime import Runtime

Columns = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class RowBatches(Batches):
    """Batches, and the rows that their numbers mean: map-style data sets with a `digest`; None where no row is held out."""

    train_rows: Any
    eval_rows: Any = None


class Pairs:
    """Preference rows as a map-style data set: item i is row i as {"chosen": Example, "rejected": Example, **columns}.

    `columns` has further numbers of each row, float32 (rows,), for example its margin.
    """

    def __init__(self, examples: Examples, columns: Columns | None = None) -> None:
        if examples.per_row != 2:
            raise ValueError(f"a row of preferences has two sequences, these have {examples.per_row}")
        self.examples = examples
        self.columns: dict[str, npt.NDArray[np.float32]] = dict(columns or {})

    def __len__(self) -> int:
        return self.examples.rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        numbers = {name: float(values[row]) for name, values in self.columns.items()}
        return {"chosen": self.examples[2 * row], "rejected": self.examples[2 * row + 1], **numbers}

    @property
    def digest(self) -> str:
        """Of the rows' tokens and their order."""
        return self.examples.digest


class PairSchedule(BatchSchedule):
    """The micro-batches of preference rows: `batch_tokens` holds both sequences of every row, padding included."""

    def __init__(self, examples: Examples, **options: Any) -> None:
        self._both = examples.lengths.reshape(-1, 2)
        super().__init__(2 * self._both.max(axis=1), **options)

    @cached_property
    def tokens(self) -> int:
        """Tokens of the run, padding not counted."""
        return sum(int(self._both[batch].sum()) for batch in self)


def collate_pairs(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Rows of `Pairs` as tensors: of B rows 2B sequences, the chosen first.

    input_ids, attention_mask   int64 (2B, T)
    completion_mask             int64 (2B, T), 1 where a token is learned
    every column of the rows    float32 (B,)
    """
    import torch

    batch = collate([row[which] for which in ("chosen", "rejected") for row in rows], pad_token_id)
    batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
    for name in rows[0]:
        if name not in ("chosen", "rejected"):
            batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
    return batch


def pair_batches(runtime: Runtime, *, margins: bool = False) -> RowBatches:
    """The run's micro-batches of preference rows, as `train` asks for.

    With `margins`, rows have the column `margin`, 0 where the data has none, if any row of the data has one.
    """
    data, options = runtime.data, runtime.config.train
    assert data is not None
    assert runtime.tokenizer is not None
    schedule = PairSchedule(
        data.train,
        batch_tokens=options.batch_tokens,
        accumulation=options.accumulation,
        epochs=options.epochs,
        seed=options.seed,
        max_steps=options.max_steps,
    )
    held_out = PairSchedule(data.eval, batch_tokens=options.batch_tokens) if data.eval.rows else None
    return RowBatches(
        train=schedule,
        held_out=held_out,
        collate=partial(collate_pairs, pad_token_id=runtime.tokenizer.pad_token_id),
        first_together=(),
        train_rows=Pairs(data.train, _margins(data.train) if margins else None),
        eval_rows=Pairs(data.eval, _margins(data.eval) if margins else None) if held_out is not None else None,
    )


def _margins(examples: Examples) -> Columns:
    values = examples.values
    return {} if np.isnan(values).all() else {"margin": np.nan_to_num(values, nan=0.0)}
