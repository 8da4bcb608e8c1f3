"""Examples of different lengths in one batch: padded on the right, padding neither attended to nor learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.data.examples import IGNORED, Example

if TYPE_CHECKING:
    from torch import Tensor


def collate(examples: Sequence[Example], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, int64 of shape (B, T) with T the longest row; labels -100 on padding."""
    import torch

    shape = (len(examples), max(len(example["input_ids"]) for example in examples))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        input_ids[row, :length] = example["input_ids"]
        attention_mask[row, :length] = 1
        labels[row, :length] = example["labels"]
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: torch.from_numpy(values) for name, values in arrays.items()}
