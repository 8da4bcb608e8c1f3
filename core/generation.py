"""Answers of a model to many prompts at once: for rollouts, for held-out metrics, for samples to read.

    prompts, longest first -> batches of at most `batch_tokens` (prompt + answer, padding included), padded on the left
    batch -> transformers' generate with the key-value cache -> answers, cut after their end token

The model's own generation_config (temperature, repetition penalties, ...) does not count here: what is sampled is what
`Sampling` says. Only its end tokens are taken over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.errors import Interrupted, LuthierError
from luthier.core.saving import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. A `temperature` of 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave nothing out."""

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) to max_new_tokens ({self.max_new_tokens}) is no range")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError("temperature and top_k must not be negative, and top_p lies above 0 and at most at 1")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`ids` are the new tokens, the end token included where it came: then the answer is `finished`."""

    ids: list[int]
    finished: bool


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_tokens: int,
    stop: threading.Event | None = None,
) -> list[Answer]:
    """One answer to each prompt (token ids, not padded), in their order.

    A batch holds at most `batch_tokens` tokens when its answers are longest, or a single prompt. Draws from torch's global
    generator. The model runs in evaluation mode and comes back in the mode it was in. Raises Interrupted once `stop` is set,
    and LuthierError for an empty prompt.
    """
    import torch

    empty = next((number for number, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise LuthierError(f"prompt {empty} has no tokens, so there is nothing to answer", where="generation")
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    options = _options(sampling, ends, pad, stop)
    answers: list[Answer | None] = [None] * len(prompts)
    with evaluating(model), _own_settings_away(model), torch.no_grad(), quiet():
        for rows in longest_first([len(prompt) for prompt in prompts], batch_tokens, sampling.max_new_tokens):
            if stop is not None and stop.is_set():
                raise Interrupted("stopped while answers were generated", fix="give the same command again")
            inputs, mask = pad_left([prompts[row] for row in rows], pad, device=_device(model))
            out = model.generate(input_ids=inputs, attention_mask=mask, **options)
            if stop is not None and stop.is_set():
                raise Interrupted("stopped while answers were generated", fix="give the same command again")
            for row, tokens in zip(rows, out[:, inputs.shape[1] :].tolist(), strict=True):
                answers[row] = cut(tokens, ends)
    return [answer for answer in answers if answer is not None]


def cut(tokens: Sequence[int], ends: Sequence[int]) -> Answer:
    """The tokens up to the first end token, which is kept; all of them where there is none."""
    at = next((place for place, token in enumerate(tokens) if token in ends), None)
    return Answer(ids=list(tokens if at is None else tokens[: at + 1]), finished=at is not None)


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer: those of the model's generation_config, else the tokenizer's. Raises LuthierError."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if given is None:
        given = tokenizer.eos_token_id
    if given is None:
        raise LuthierError(
            "neither the model nor its tokenizer has an end token, so no answer would ever end",
            where="generation_config.json",
            fix="set eos_token_id in the model's generation_config.json",
        )
    return tuple(given) if isinstance(given, list | tuple) else (int(given),)


def pad_left(prompts: Sequence[Sequence[int]], pad: int, *, device: Any = None) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask`, int64 of shape (B, T): padded on the left, so that all answers begin together."""
    import torch

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode within the block; each module gets the mode back that it had."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _own_settings_away(model: Any) -> Iterator[None]:
    """transformers fills whatever a given configuration leaves open from the model's own: a repetition penalty, for one."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before


def _options(sampling: Sampling, ends: tuple[int, ...], pad: int, stop: threading.Event | None) -> dict[str, Any]:
    from transformers import GenerationConfig, StoppingCriteriaList

    greedy = sampling.temperature == 0
    drawn = (
        {}
        if greedy
        else {"temperature": float(sampling.temperature), "top_p": float(sampling.top_p), "top_k": sampling.top_k}
    )
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        do_sample=not greedy,
        eos_token_id=list(ends),
        pad_token_id=pad,
        use_cache=True,
        **drawn,
    )
    options: dict[str, Any] = {"generation_config": config}
    if stop is not None:
        options["stopping_criteria"] = StoppingCriteriaList([lambda ids, scores, **_: _all(ids, stop.is_set())])
    return options


def _all(ids: Tensor, value: bool) -> Tensor:
    import torch

    return torch.full((ids.shape[0],), value, dtype=torch.bool, device=ids.device)


def longest_first(lengths: Sequence[int], batch_tokens: int, new_tokens: int = 0) -> Iterator[list[int]]:
    """Row numbers in batches, longest first, one at least: a batch's longest row and `new_tokens`, times its rows, fit."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    begin = 0
    while begin < len(order):
        rows = max(1, batch_tokens // (lengths[order[begin]] + new_tokens))
        yield order[begin : begin + rows]
        begin += rows


def _device(model: Any) -> Any:
    return next(model.parameters()).device
