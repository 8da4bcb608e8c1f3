"""A rollout: answers to a batch of prompts, and what policy, value head and reference make of each of their tokens.

    prompts -> generate, with the key-value cache          batches padded on the left
    prompts + answers -> log-probabilities, entropy, values    batches padded on the right, one forward pass
                      -> the same under the reference

What the policy thinks of an answer is computed anew and not taken from generation: with the batches and the padding of the
updates, the first ratio of new and old policy is then 1, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.generation import Answer, Sampling, end_tokens, generate
from luthier.plugins.ppo.forward import Batch, make_batch, states_at, without_dropout
from luthier.plugins.ppo.likelihood import token_statistics

if TYPE_CHECKING:
    from luthier.plugins.ppo.roles import Roles


@dataclass(frozen=True)
class Rollout:
    """B answers of up to R tokens. Tensors are (B, R) on the model's device, float32, and hold 0 where `mask` is false.

    rows            row numbers of the prompts
    minibatches     row places (0 to B-1), a partition: each a list of micro-batches
    """

    rows: list[int]
    prompts: list[list[int]]
    answers: list[Answer]
    mask: Tensor
    logprobs: Tensor
    reference: Tensor
    values: Tensor
    entropy: Tensor
    minibatches: list[list[list[int]]]

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers."""
        return sum(map(len, self.prompts)) + self.answer_tokens

    @property
    def answer_tokens(self) -> int:
        return sum(len(answer.ids) for answer in self.answers)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How answers are sampled and looked at: everything about the run that a forward pass over answers depends on."""

    roles: Roles
    tokenizer: Any
    sampling: Sampling
    batch_tokens: int
    autocast: Callable[[], AbstractContextManager[Any]]

    @property
    def device(self) -> Any:
        return next(self.roles.model.parameters()).device

    def batch(self, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> Batch:
        return make_batch(prompts, [answer.ids for answer in answers], self.tokenizer.pad_token_id, self.device)

    def statistics(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies) of the batch's targets, (N,), as they were sampled."""
        least = self.sampling.min_new_tokens
        banned = ends = None
        if least:
            # The places of a row are neighbours: the first ones are those where no end token could come.
            number = batch.places.cumsum(dim=1)
            banned = number[batch.places] <= least
            ends = torch.tensor(end_tokens(self.roles.model, self.tokenizer), device=logits.device)
        return token_statistics(logits, batch.targets, temperature=self.sampling.temperature, banned=banned, ends=ends)

    def answers(self, prompts: Sequence[Sequence[int]], stop: threading.Event | None = None) -> list[Answer]:
        """One sampled answer to each prompt; raises Interrupted once `stop` is set."""
        with self.autocast():
            return generate(
                self.roles.model, self.tokenizer, prompts, self.sampling, batch_tokens=self.batch_tokens, stop=stop
            )


def collect(
    measure: Measure,
    rows: list[int],
    prompts: list[list[int]],
    *,
    minibatches: int,
    stop: threading.Event | None = None,
) -> Rollout:
    """Sample one answer to each prompt and look at it; draws from torch's global generator.

    Raises Interrupted once `stop` is set while answers are sampled.
    """
    answers = measure.answers(prompts, stop)
    shape = (len(rows), max(len(answer.ids) for answer in answers))
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, answer in enumerate(answers):
        mask[row, : len(answer.ids)] = True
    mask = mask.to(measure.device)
    logprobs, reference, values, entropy = (torch.zeros(shape, device=measure.device) for _ in range(4))
    lengths = [len(prompt) + len(answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
    parts = split(lengths, minibatches, measure.batch_tokens)
    roles = measure.roles
    with torch.no_grad(), without_dropout(roles.model), measure.autocast():
        for places in (places for minibatch in parts for places in minibatch):
            batch = measure.batch([prompts[place] for place in places], [answers[place] for place in places])
            where = mask[places]
            hidden, logits = states_at(roles.model, batch.ids, batch.mask, batch.places, logits=True)
            assert logits is not None
            new, randomness = measure.statistics(logits, batch)
            del logits
            if roles.value_adapter:
                with roles.values() as model:
                    hidden, _ = states_at(model, batch.ids, batch.mask, batch.places, logits=False)
            with roles.reference() as frozen:
                _, logits = states_at(frozen, batch.ids, batch.mask, batch.places, logits=True)
            assert logits is not None
            old, _ = measure.statistics(logits, batch)
            del logits
            for target, flat in ((logprobs, new), (entropy, randomness), (reference, old), (values, roles.head(hidden))):
                filled = torch.zeros(where.shape, device=where.device)
                filled[where] = flat.float()
                target[places] = filled
    return Rollout(rows, prompts, answers, mask, logprobs, reference, values, entropy, parts)


def split(lengths: Sequence[int], minibatches: int, batch_tokens: int) -> list[list[list[int]]]:
    """A random partition into mini-batches of nearly equal numbers of rows, each cut into micro-batches.

    A micro-batch's rows times its longest row are at most `batch_tokens`, or it is a single row; rows of similar length
    stand together. Draws from torch's global generator.
    """
    order = torch.randperm(len(lengths)).tolist()
    count = min(minibatches, len(order))
    parts = []
    for number in range(count):
        rows = sorted(order[number::count], key=lambda row: lengths[row])
        micro: list[list[int]] = []
        for row in rows:
            if micro and (len(micro[-1]) + 1) * lengths[row] <= batch_tokens:
                micro[-1].append(row)
            else:
                micro.append([row])
        parts.append(micro)
    return parts
