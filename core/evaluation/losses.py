"""The loss of the supervised tokens of tokenised rows, each counted once: as the trainer evaluates, and by row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from luthier.core.progress import IGNORED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from luthier.core.data import Examples

LARGEST: Final = 700.0  # exp() of more is no float; so bad a model has lost far more than its digits


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """`sums`, float64 (sequences,), in nats: the losses of each sequence's supervised tokens; `tokens`, int64, how many."""

    sums: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Mean over all supervised tokens; NaN where there are none."""
        tokens = int(self.tokens.sum())
        return float(self.sums.sum()) / tokens if tokens else math.nan

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    def of(self, sequence: int) -> float:
        """Mean over one sequence; NaN where nothing of it is supervised."""
        tokens = int(self.tokens[sequence])
        return float(self.sums[sequence]) / tokens if tokens else math.nan


def perplexity(loss: float) -> float:
    """exp(loss): among how many equally likely tokens a model would be as unsure."""
    return math.exp(min(loss, LARGEST))


def token_losses(model: Any, examples: Examples, *, batch_tokens: int, pad_token_id: int) -> TokenLosses:
    """Cross-entropy of the next token for every token with a label, in float32; sequences of similar length together.

    A batch holds at most `batch_tokens` tokens, padding included, or one sequence. The model's mode comes back.
    """
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from luthier.core.data import BatchSchedule, collate
    from luthier.core.generation import evaluating

    sums, tokens = np.zeros(len(examples)), np.zeros(len(examples), dtype=np.int64)
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        for rows in BatchSchedule(examples.lengths, batch_tokens=batch_tokens):
            batch = collate([examples[row] for row in rows], pad_token_id=pad_token_id)
            labels = batch.pop("labels")[:, 1:].to(device)
            inputs = {name: values.to(device) for name, values in batch.items()}
            logits = model(**inputs, use_cache=False).logits[:, :-1]
            supervised = labels != IGNORED
            losses = cross_entropy(logits[supervised].float(), labels[supervised], reduction="none").double()
            row_of = supervised.nonzero()[:, 0]
            found = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add_(0, row_of, losses)
            sums[rows], tokens[rows] = found.cpu().numpy(), supervised.sum(1).cpu().numpy()
    return TokenLosses(sums, tokens)
