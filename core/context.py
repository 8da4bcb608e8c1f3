"""What a method may ask for while the model is built: tokenizer, training batches, precision, and a way to say something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.plan import Precision

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def _no_batches(count: int) -> Iterator[dict[str, Any]]:
    return iter(())


def _say_nothing(text: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """Given to an `attach` or `apply` that declares a parameter `context`.

    tokenizer           with every change that the patches of the run made to it
    original_tokenizer  as the model came with it; the same object where no patch changed anything
    batches             `batches(n)` yields up to n training batches {"input_ids", "attention_mask", "labels"}, each (B, T),
                        on the run's device, in the order in which training will see them (under `data.packing` the rows
                        come padded all the same, and in another order)
    notice              tells the user something worth knowing; it becomes a line of the run's output
    precision           the number formats that the plan chose
    """

    precision: Precision
    tokenizer: PreTrainedTokenizerBase | None = None
    original_tokenizer: PreTrainedTokenizerBase | None = None
    batches: Callable[[int], Iterator[dict[str, Tensor]]] = _no_batches
    notice: Callable[[str], None] = _say_nothing
