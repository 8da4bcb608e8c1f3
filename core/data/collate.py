"""Examples of different lengths in one batch: padded on the right, or packed one after another.

padded   input_ids (B, T)  a a a . .    attention_mask  1 1 1 0 0      padding is neither attended to nor learned
                           b b b b b                    1 1 1 1 1
packed   input_ids (1, T)  a a a b b b b b              no mask: where positions start anew, a document begins
         position_ids      0 1 2 0 1 2 3 4
         cu_seq_lens       0     3         8
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from luthier.core.data.examples import IGNORED, Example

if TYPE_CHECKING:
    from torch import Tensor

Collate: TypeAlias = "Callable[[Sequence[Example]], dict[str, Any]]"


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


def collate_packed(examples: Sequence[Example]) -> dict[str, Any]:
    """The examples as documents of one sequence, described for attention kernels by transformers' FlashAttentionKwargs.

    input_ids, labels             int64 (1, T), T the sum of all lengths; the first label of each document is -100, because
                                  the token before it belongs to another
    position_ids                  int64 (1, T), from 0 in each document
    cu_seq_lens_q, cu_seq_lens_k  int32 (documents + 1), the same tensor: where the documents begin, and T
    max_length_q, max_length_k    int, tokens of the longest document

    There is no attention mask: with one, transformers does not look for documents in the positions.
    """
    import torch

    lengths = [len(example["input_ids"]) for example in examples]
    ends = np.cumsum([0, *lengths])
    labels = np.concatenate([example["labels"] for example in examples])
    labels[ends[:-1]] = IGNORED
    positions = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    cumulative = torch.from_numpy(ends.astype(np.int32))
    return {
        "input_ids": torch.from_numpy(np.concatenate([example["input_ids"] for example in examples]))[None],
        "position_ids": torch.from_numpy(positions)[None],
        "labels": torch.from_numpy(labels)[None],
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
