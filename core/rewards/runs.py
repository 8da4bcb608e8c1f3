"""A reward run: the model with a score head that another run trained, loaded once, and asked in batches.

Where it has the policy's tokenizer and chat template, it reads the very tokens that the policy wrote, and the end of the
turn. Any other reads the row's messages and the answer through its own template. Either reads up to that token, as a
reward run does in training: what a template writes after it is no part of the answer. An answer that did not end is read
without it, as one that was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.data.templates.stopping import end_of_turn
from luthier.core.errors import LuthierError
from luthier.core.generation import longest_first
from luthier.core.rewards.config import RunTerm
from luthier.core.rewards.scoring import RewardError, Score, Scored, described
from luthier.core.trained import read_run, run_tokenizer, trained_model

if TYPE_CHECKING:
    from luthier.core.plan import Plan
    from luthier.core.runtime import Runtime

PROBE: Final = "Qx7luthierProbe"


def run(name: str, term: RunTerm, runtime: Runtime) -> Score:
    """Loads the model onto the run's device. Raises RewardError where the folder is no reward run or cannot be loaded."""
    if term.share in (True, "true"):
        raise RewardError(name, "this stage cannot share its model with the reward", fix="leave out `share`, or take false")
    folder = Path(term.path).expanduser()
    plan = reward_plan(name, folder)
    assert runtime.tokenizer is not None
    try:
        tokenizer = run_tokenizer(plan, folder, runtime.catalog)
        model: Any = trained_model(plan, folder, runtime.catalog, tokenizer)
    except LuthierError as error:
        raise RewardError(name, f"{folder} cannot be loaded: {error.message}", fix=error.fix) from error
    model.to(runtime.plan.device).requires_grad_(False)
    return RewardModel(name, model, tokenizer, policy=runtime.tokenizer, batch_tokens=term.batch_tokens)


def reward_plan(name: str, folder: Path) -> Plan:
    """The plan of a run whose stage trained a score head; raises RewardError for any other folder."""
    try:
        plan = read_run(folder)
    except LuthierError as error:
        raise RewardError(name, f"{folder}: {error.message}", fix="give the output folder of a reward run") from error
    if plan.task != "score":
        raise RewardError(
            name,
            f"{folder} is a run of the stage {plan.step('stage').method}, which trains no reward model",
            fix="give the output folder of a run that trained one",
        )
    return plan


class RewardModel:
    """Called with answers, gives their scores: the head's one number, as transformers takes it at the last token."""

    def __init__(self, name: str, model: Any, tokenizer: Any, *, policy: Any, batch_tokens: int) -> None:
        self._name, self._model, self._tokenizer, self._batch_tokens = name, model, tokenizer, batch_tokens
        self._limit = getattr(model.config, "max_position_embeddings", None)
        self._same = same_texts(tokenizer, policy)
        # Where the two are the same, so are these of the policy.
        self._closing = closing_tokens(tokenizer)

    def __call__(self, answers: Sequence[Scored]) -> list[float]:
        import torch

        rows = [self.tokens(answer) for answer in answers]
        scores = [0.0] * len(rows)
        for places in longest_first([len(row) for row in rows], self._batch_tokens):
            width = len(rows[places[0]])
            ids = torch.full((len(places), width), self._tokenizer.pad_token_id, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for line, place in enumerate(places):
                ids[line, : len(rows[place])] = torch.tensor(rows[place], dtype=torch.int64)
                mask[line, : len(rows[place])] = 1
            device = next(self._model.parameters()).device
            with torch.no_grad():
                found = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float()
            for place, value in zip(places, found.tolist(), strict=True):
                scores[place] = value
        return scores

    def tokens(self, answer: Scored) -> list[int]:
        """What the reward model reads. Raises RewardError for what it cannot."""
        if self._same:
            ids = [*answer.prompt_ids, *(answer.ids[:-1] if answer.finished else answer.ids)]
            ids += self._closing if answer.finished else []
        elif answer.messages is None:
            raise RewardError(
                self._name,
                f"the reward model has another tokenizer or chat template, and {described(answer)} has no messages",
                rows=[answer.row],
                fix="take a reward run that began with the policy's model",
            )
        else:
            said = [*answer.messages, {"role": "assistant", "content": answer.text}]
            tools = list(answer.tools) if answer.tools else None
            whole = list(self._tokenizer.apply_chat_template(said, tools=tools, return_dict=True)["input_ids"])
            ids = up_to_the_end(whole, self._tokenizer)
            if not answer.finished and self._closing and ids[-len(self._closing) :] == self._closing:
                ids = ids[: -len(self._closing)]
        if self._limit is not None and len(ids) > self._limit:
            raise RewardError(
                self._name,
                f"{described(answer)} has {len(ids)} tokens with its answer, and the reward model reads {self._limit}",
                rows=[answer.row],
                fix="lower `data.max_length` or `max_new_tokens`",
            )
        return ids


def same_texts(one: Any, other: Any) -> bool:
    """Whether two tokenizers write the same conversation as the same tokens."""
    first, second = (getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (one, other))
    if first is None or second is None or one.chat_template != other.chat_template:
        return False
    return one.get_vocab() == other.get_vocab() and type(one) is type(other)


def closing_tokens(tokenizer: Any) -> list[int]:
    """What the chat template ends an answer with; not what it writes after the end token."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    text = tokenizer.apply_chat_template(said, tokenize=False)
    return up_to_the_end(tokenizer(text.rpartition(PROBE)[2], add_special_tokens=False)["input_ids"], tokenizer)


def up_to_the_end(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The tokens up to the last one that ends a turn; all of them where there is none."""
    end = end_of_turn(tokenizer)
    number = None if end is None else tokenizer.convert_tokens_to_ids(end)
    last = max((place for place, token in enumerate(ids) if token == number), default=len(ids) - 1)
    return list(ids[: last + 1])
