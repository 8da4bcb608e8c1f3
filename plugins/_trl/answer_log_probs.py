"""Log-probabilities of answers' tokens, from the model's own forward pass.

TRL pads prompts on the left and answers on the right, and gives that to the model. A model with learned positions, or a
recurrent one, then reads another text than it answered. Here each row is put together without a gap first:

    . . p p p | a a .   ->   p p p a a .       position of the first token is 0 again, as when the answer was generated
    p p p p p | a . .        p p p p p a
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import torch
from torch import Tensor

KEEP: Final = "logits_to_keep"
AT_ONCE: Final = 512


def answer_log_probs(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    answers: int,
    *,
    temperature: float = 1.0,
    batch_size: int | None = None,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Of the last `answers` columns, float32 (B, answers) each: log-probabilities at `temperature`, and entropies in nats.

    `input_ids` and `attention_mask` are int64 (B, T), prompts padded on the left, answers on the right. Both results are 0
    where nothing was generated; entropies have no gradient. `batch_size` rows go through the model at once.
    """
    rows = len(input_ids)
    size = batch_size or rows
    parts = [
        _of_rows(model, input_ids[at : at + size], attention_mask[at : at + size], answers, temperature, entropy)
        for at in range(0, rows, size)
    ]
    log_probs = torch.cat([part[0] for part in parts])
    return log_probs, torch.cat([part[1] for part in parts]) if entropy else None


def _of_rows(
    model: Any, input_ids: Tensor, attention_mask: Tensor, answers: int, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    real = attention_mask.bool()
    prompts, lengths = real[:, :-answers].sum(1), real.sum(1)
    width, device = int(lengths.max()), input_ids.device
    ids = input_ids.new_zeros(len(input_ids), width)
    mask = attention_mask.new_zeros(len(input_ids), width)
    line, column = real.nonzero(as_tuple=True)
    place = (real.cumsum(1) - 1)[line, column]
    ids[line, place], mask[line, place] = input_ids[line, column], 1

    # The answers' tokens: which row, which column of the result, and which position predicts them.
    line, column = real[:, -answers:].nonzero(as_tuple=True)
    found = torch.zeros(len(input_ids), answers, device=device)
    if not len(line):
        # TRL goes backward from here all the same, where every answer of a micro-batch was cut and is not to count.
        return found.clone().requires_grad_(torch.is_grad_enabled()), found
    predicted = prompts[line] + column
    targets = ids[line, predicted]
    first = int(prompts.min()) - 1
    keep = width - first
    options = {KEEP: keep} if _keeps(model) else {}
    logits = model(input_ids=ids, attention_mask=mask, **options).logits[:, -keep:]
    chosen = logits[line, predicted - 1 - first]
    log_probs, entropies = [], []
    for at in range(0, len(line), AT_ONCE):
        scaled = chosen[at : at + AT_ONCE].float() / temperature
        normalised = scaled - scaled.logsumexp(-1, keepdim=True)
        log_probs.append(normalised.gather(-1, targets[at : at + AT_ONCE, None])[:, 0])
        if entropy:
            with torch.no_grad():
                entropies.append(-(normalised.exp() * normalised).sum(-1))
    where = (line, column)
    spread = found.index_put(where, torch.cat(log_probs))
    return spread, found.index_put(where, torch.cat(entropies)) if entropy else found


def _keeps(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return KEEP in inspect.signature(type(base).forward).parameters
