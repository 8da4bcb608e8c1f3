"""The contract of attention kernels: the numbers of plain attention, whatever the mask, the window and the cache.

plain          softmax(q k' / sqrt(d) + mask) v, in transformers' own products
tokens         a token sees itself and those before it; padding is seen by nobody
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from luthier.core.contracts import AttentionKernel
from luthier.core.data.collate import collate, collate_packed
from luthier.core.data.examples import Example
from luthier.core.packed_masks import PACKED
from luthier.core.testing import measuring
from luthier.core.testing.contract import EVERY_PARAMETER, Case, Contract, everything
from luthier.core.testing.measuring import logits
from luthier.core.testing.models import token_batch

# Padding in front and behind, and a row that is full.
PADDED: Final = ((5, 0), (0, 7), (0, 0))
LENGTH: Final = 24
# Documents of a packed sequence: longer and shorter than a window of 8, and one of a single token.
DOCUMENTS: Final = (19, 5, 1, 12)
NEW_TOKENS: Final = 10


class AttentionKernelContract(Contract):
    """For an `AttentionKernel`. See `Contract` for what can be set, and besides:

    tolerance            how far logits may be from those of plain attention, as a part of the greatest, in float32
    gradient_tolerance   how far a float32 gradient may be from that of plain attention in float64
    """

    slot: ClassVar[str] = "attention"
    tolerance: ClassVar[float] = 1e-5
    gradient_tolerance: ClassVar[float] = 1e-3

    # ---- what is looked at

    def model(self, case: Case) -> Any:
        """The model with the kernel."""
        kernel, config = self.description, self.pick(case).config
        assert isinstance(kernel, AttentionKernel)
        if kernel.register is not None:
            kernel.register()
        options = dict(kernel.load_options(self.profile(case), config))
        return self.load(case, options=options | {"attn_implementation": kernel.implementation})

    def compare(self, case: Case, batch: dict[str, Tensor], what: str) -> None:
        """Logits of real tokens against those of plain attention."""
        real = batch["attention_mask"].bool()
        found, expected = logits(self.model(case), batch)[real], logits(self.load(case), batch)[real]
        off = measuring.difference(found, expected)
        assert off <= self.tolerance, f"{what}: the output is {off:.2e} of it away from plain attention's"

    # ---- what it promises

    def test_it_equals_plain_attention(self, case: Case) -> None:
        self.compare(case, token_batch(length=LENGTH), "a full batch")

    def test_padding_is_seen_by_nobody(self, case: Case) -> None:
        """In front and behind; and what stands there makes no difference."""
        batch = padded()
        self.compare(case, batch, "a padded batch")
        model, real = self.model(case), batch["attention_mask"].bool()
        other = batch | {"input_ids": torch.where(real, batch["input_ids"], 7)}
        off = measuring.difference(logits(model, other)[real], logits(model, batch)[real])
        assert off <= self.tolerance, f"another padding token moves the output of real tokens by {off:.2e} of it"

    def test_no_token_sees_a_later_one(self, case: Case) -> None:
        model, batch = self.model(case), token_batch(length=LENGTH)
        before = logits(model, batch)
        for position in (1, LENGTH // 2, LENGTH - 1):
            ids = batch["input_ids"].clone()
            ids[:, position] = (ids[:, position] + 1) % 256
            after = logits(model, batch | {"input_ids": ids})
            off = measuring.difference(after[:, :position], before[:, :position])
            assert off <= self.tolerance, f"token {position} moves the output of those before it by {off:.2e} of it"
            assert not torch.equal(after[:, position], before[:, position]), f"token {position} does not even see itself"

    def test_gradients_are_right(self, case: Case) -> None:
        """With padding, against plain attention in float64."""
        batch = padded()
        batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
        profile = self.profile(case)
        model, plain = (everything(one, profile, EVERY_PARAMETER.config()) for one in (self.model(case), self.load(case)))
        _, found = measuring.gradients(model, batch)
        with measuring.float64(plain):
            _, reference = measuring.gradients(plain, batch)
        wrong = measuring.wrong_gradients(found, reference, self.gradient_tolerance)
        assert not wrong, f"the gradient is not that of plain attention: {wrong}"

    def test_packed_documents_are_kept_apart(self, case: Case) -> None:
        """Where "attention.packed" is declared: logits and gradients of one packed sequence are plain attention's, apart."""
        if PACKED not in self.pick(case).declaration.provides:
            return
        rows = documents()
        packed, apart = collate_packed(rows), collate(rows, pad_token_id=0)
        model, plain = self.model(case), self.load(case)
        with torch.no_grad():
            inputs = {name: value for name, value in packed.items() if name != "labels"}
            found = model(**inputs, use_cache=False).logits[0].float()
        expected = logits(plain, apart)[apart["attention_mask"].bool()]
        off = measuring.difference(found, expected)
        assert off <= self.tolerance, f"packed: the output is {off:.2e} of it away from that of the documents apart"
        profile = self.profile(case)
        _, gradients = measuring.gradients(everything(model, profile, EVERY_PARAMETER.config()), packed)
        with measuring.float64(everything(plain, profile, EVERY_PARAMETER.config())):
            _, reference = measuring.gradients(plain, apart)
        wrong = measuring.wrong_gradients(gradients, reference, self.gradient_tolerance)
        assert not wrong, f"packed: the gradient is not that of the documents apart: {wrong}"

    def test_generation_with_the_cache(self, case: Case) -> None:
        """Token after token with cached keys and values, padded in front: as without the cache, and as plain attention."""
        batch = padded(sides=((5, 0), (0, 0)))
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        cached, whole = (_continued(self.model(case), inputs, use_cache=use_cache) for use_cache in (True, False))
        plain = _continued(self.load(case), inputs, use_cache=True)
        for found, what in ((whole, "without the key-value cache it is another"), (plain, "plain attention's is another")):
            off = measuring.difference(cached, found)
            assert off <= 10 * self.tolerance, f"a continuation with the key-value cache: {what}, off by {off:.2e}"


def documents() -> list[Example]:
    """Random tokens, every one a label but the first of each document, which nothing predicts."""
    random = np.random.RandomState(0)
    rows: list[Example] = []
    for length in DOCUMENTS:
        ids = random.randint(0, 256, size=length).astype(np.int64)
        rows.append({"input_ids": ids, "labels": ids.copy()})
    return rows


def padded(sides: tuple[tuple[int, int], ...] = PADDED) -> dict[str, Tensor]:
    """A batch whose rows have so much padding in front and behind, with positions that count real tokens only."""
    batch = token_batch(rows=len(sides), length=LENGTH)
    for row, (front, behind) in enumerate(sides):
        batch["attention_mask"][row, :front] = 0
        batch["attention_mask"][row, LENGTH - behind :] = 0
    return batch


def _continued(model: Any, inputs: dict[str, Tensor], *, use_cache: bool) -> Tensor:
    """Scores (B, new tokens, V) of the most likely continuation."""
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    with torch.no_grad():
        made = model.generate(
            **inputs, **options, use_cache=use_cache, return_dict_in_generate=True, output_logits=True, pad_token_id=0
        )
    return torch.stack(made.logits, dim=1).float()
