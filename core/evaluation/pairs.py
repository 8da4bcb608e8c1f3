"""Which of two answers a model finds better: by its log-probability, or by its score.

    causal   margin = log p(chosen | prompt) - log p(rejected | prompt), in nats, summed over the answers' tokens
    score    margin = score(chosen) - score(rejected)

accuracy is the part of the rows with a margin above 0; `longer` what picking the answer of more tokens would reach, a row
where both are as long counting half (Singhal et al. 2023, A Long Way to Go, arXiv:2310.03716, is why one looks at it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from luthier.core.contracts import Task
    from luthier.core.data import Examples

    Numbers = npt.NDArray[np.float64]


def pair_values(
    model: Any, examples: Examples, task: Task, *, batch_tokens: int, pad_token_id: int
) -> tuple[Numbers, Numbers]:
    """What the model gives the chosen and the rejected answers, float64 (rows,) each: log-probabilities, or scores."""
    from luthier.core.evaluation.losses import token_losses

    if task == "causal":
        values = -token_losses(model, examples, batch_tokens=batch_tokens, pad_token_id=pad_token_id).sums
    else:
        values = sequence_scores(model, examples, batch_tokens=batch_tokens, pad_token_id=pad_token_id)
    return values[0::2], values[1::2]


def sequence_scores(model: Any, examples: Examples, *, batch_tokens: int, pad_token_id: int) -> Numbers:
    """The score of every sequence, float64 (sequences,), by a model with a head of one number."""
    import numpy as np
    import torch

    from luthier.core.data import BatchSchedule, collate
    from luthier.core.generation import evaluating

    scores = np.zeros(len(examples))
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        for rows in BatchSchedule(examples.lengths, batch_tokens=batch_tokens):
            batch = collate([examples[row] for row in rows], pad_token_id=pad_token_id)
            inputs = {name: values.to(device) for name, values in batch.items() if name != "labels"}
            scores[rows] = model(**inputs, use_cache=False).logits[:, 0].double().cpu().numpy()
    return scores


def longer_answers(examples: Examples) -> Numbers:
    """For each row 1 where the chosen answer has more learned tokens, 0 where it has fewer, 0.5 where they are as long."""
    import numpy as np

    from luthier.core.data.examples import IGNORED

    learned = np.asarray([int((example["labels"] != IGNORED).sum()) for example in examples])
    chosen, rejected = learned[0::2], learned[1::2]
    return np.where(chosen == rejected, 0.5, chosen > rejected).astype(np.float64)
