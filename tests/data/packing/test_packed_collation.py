"""What a packed batch looks like: by hand, and as transformers' own packing collator makes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithFlattening

from luthier.core.data import collate
from luthier.core.data.collate import collate_packed


def example(ids: list[int], labels: list[int]) -> Any:
    return {"input_ids": np.array(ids), "labels": np.array(labels)}


DOCUMENTS = [example([5, 6, 7], [5, 6, 7]), example([8], [8]), example([9, 3], [-100, 3])]


def test_by_hand() -> None:
    batch = collate_packed(DOCUMENTS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100, 3]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 4, 6]
    assert (batch["max_length_q"], batch["max_length_k"]) == (3, 3)
    assert "attention_mask" not in batch
    assert {batch[name].dtype for name in ("input_ids", "position_ids", "labels")} == {torch.int64}
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert DOCUMENTS[0]["labels"].tolist() == [5, 6, 7], "the examples themselves are left alone"


def test_it_is_what_transformers_collator_gives() -> None:
    plain = [{name: values.tolist() for name, values in one.items()} for one in DOCUMENTS]
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(plain)
    ours = collate_packed(DOCUMENTS)
    for name in ("input_ids", "position_ids", "labels", "cu_seq_lens_q", "cu_seq_lens_k"):
        assert ours[name].tolist() == theirs[name].tolist(), name
    for name in ("max_length_q", "max_length_k"):
        assert ours[name] == int(theirs[name])


def test_one_document_is_a_batch_without_padding() -> None:
    packed, padded = collate_packed(DOCUMENTS[:1]), collate(DOCUMENTS[:1], pad_token_id=0)
    assert packed["input_ids"].tolist() == padded["input_ids"].tolist()
    assert packed["position_ids"].tolist() == [[0, 1, 2]]


def test_the_tokens_that_are_learned_are_those_of_the_padded_batch() -> None:
    from luthier.core.progress import supervised_tokens

    packed, padded = collate_packed(DOCUMENTS), collate(DOCUMENTS, pad_token_id=0)
    assert int(supervised_tokens(packed["labels"])) == int(supervised_tokens(padded["labels"])) == 3
