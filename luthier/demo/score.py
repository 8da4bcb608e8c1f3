"""How often a model answers a request with exactly the command that was wanted: greedy generation, then comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from luthier.core.frozen import canonical_json
from luthier.demo.task import Example

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

BATCH: Final = 50
# A longer answer than the longest that is wanted is wrong; a few tokens more show how it goes on.
MARGIN: Final = 8


@dataclass(frozen=True)
class Score:
    """The answers to some examples, in their order, and which of them are exact."""

    answers: tuple[str, ...]
    exact: tuple[bool, ...]

    @property
    def rate(self) -> float:
        """The part of the answers that is exact, 0 to 1."""
        return sum(self.exact) / len(self.exact)


def score(model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> Score:
    """Let the model answer every example greedily. Raises ValueError when there is none."""
    if not examples:
        raise ValueError("there are no examples to score")
    longest = max(len(tokenizer(example.command)["input_ids"]) for example in examples)
    prompts = [example.row()["messages"][:-1] for example in examples]
    answers = answer(model, tokenizer, prompts, max_new_tokens=longest + MARGIN)
    return Score(tuple(answers), tuple(map(is_exact, answers, (example.command for example in examples))))


def is_exact(given: str, wanted: str) -> bool:
    """Whether the whole answer is one JSON value equal to the wanted one; spaces and the order of keys do not count."""
    try:
        return canonical_json(json.loads(given)) == canonical_json(json.loads(wanted))
    except (ValueError, RecursionError):
        return False


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    max_new_tokens: int,
    batch_size: int = BATCH,
) -> list[str]:
    """The model's greedy answer to each conversation, up to the token that ends a turn, stripped.

    Conversations of similar length share a batch, padded on the left, with a key-value cache; a batch ends when all its
    answers have. The model's mode is put back to what it was.
    """
    import torch

    prompts = [_prompt(tokenizer, conversation) for conversation in conversations]
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = [""] * len(prompts)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(by_length), batch_size):
                rows = by_length[start : start + batch_size]
                texts = _answer_batch(model, tokenizer, [prompts[row] for row in rows], max_new_tokens)
                for row, text in zip(rows, texts, strict=True):
                    answers[row] = text
    finally:
        model.train(training)
    return answers


def _prompt(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Mapping[str, Any]]) -> list[int]:
    text = tokenizer.apply_chat_template(list(conversation), add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _answer_batch(model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    import torch

    width = max(map(len, prompts))
    device = next(model.parameters()).device
    padding = [width - len(prompt) for prompt in prompts]
    ids = [[tokenizer.pad_token_id] * pads + prompt for pads, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pads + [1] * (width - pads) for pads in padding]
    made = model.generate(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [_text(tokenizer, row[width:].tolist()) for row in made]


def _text(tokenizer: Any, ids: list[int]) -> str:
    """Up to the end of the turn: what follows it in a batch is padding, and the padding token may be an ordinary one."""
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    text: str = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return text.strip()
