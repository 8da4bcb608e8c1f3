"""Three fixed questions, what a model answers to them, and what a reward model thinks of the answers.

Answers are the likeliest ones (greedy), so that they differ between two models by the models alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.generation import Answer, Sampling, generate
from luthier.core.rewards.runs import RewardModel
from luthier.core.rewards.scoring import Scored

if TYPE_CHECKING:
    from luthier.core.catalog import Catalog
    from luthier.core.plan import Plan

QUESTIONS: Final = (
    "What is the capital of France?",
    "Give me two tips for a good night's sleep.",
    "Why is the sky blue?",
)
LONGEST: Final = 64
BATCH_TOKENS: Final = 2048
REWARD: Final = "reward"  # what a reward model is called in its own errors


@dataclass(frozen=True)
class Sample:
    """An answer to one of the questions. `row` is which one."""

    row: int
    question: str
    answer: Answer
    text: str
    prompt: tuple[int, ...]

    @property
    def shown(self) -> str:
        """On one line, with "..." where the model was not done."""
        return " ".join(self.text.split()) + ("" if self.answer.finished else " ...")


def answers(folder: Path, catalog: Catalog) -> list[Sample]:
    """What the model of a finished run answers. Raises ModelError where its weights are missing or damaged."""
    with model_of(folder, catalog) as (model, tokenizer):
        return ask(model, tokenizer)


def first_answers(plan: Plan) -> list[Sample]:
    """What the model that a run starts from answers, before any training."""
    from luthier.core.loading import load_model, load_tokenizer

    return ask(load_model(plan), load_tokenizer(plan.model))


def ask(model: Any, tokenizer: Any, questions: Sequence[str] = QUESTIONS) -> list[Sample]:
    """The greedy answers of a model to the questions, each a conversation of its own."""
    prompts = [prompt_of(tokenizer, question) for question in questions]
    sampling = Sampling(max_new_tokens=LONGEST, temperature=0.0)
    made = generate(model, tokenizer, prompts, sampling, batch_tokens=BATCH_TOKENS)
    texts = [tokenizer.decode(answer.ids, skip_special_tokens=True).strip() for answer in made]
    parts = zip(questions, made, texts, prompts, strict=True)
    return [Sample(row, question, answer, text, tuple(ids)) for row, (question, answer, text, ids) in enumerate(parts)]


def scores(folder: Path, catalog: Catalog, *answered: Sequence[Sample]) -> list[list[float]]:
    """The reward of each answer by the reward run in `folder`, for every list of answers that is given."""
    rows = [sample for samples in answered for sample in samples]
    with model_of(folder, catalog) as (model, tokenizer):
        judge = RewardModel(REWARD, model, tokenizer, policy=tokenizer, batch_tokens=BATCH_TOKENS)
        values = iter(judge([scored(sample, tokenizer) for sample in rows]))
    return [[next(values) for _ in samples] for samples in answered]


def scored(sample: Sample, tokenizer: Any) -> Scored:
    """A sample as reward terms take it."""
    return Scored(
        prompt=tokenizer.decode(sample.prompt, skip_special_tokens=False),
        text=sample.text,
        ids=sample.answer.ids,
        prompt_ids=sample.prompt,
        finished=sample.answer.finished,
        reference=None,
        row=sample.row,
        messages=({"role": "user", "content": sample.question},),
    )


def prompt_of(tokenizer: Any, question: str) -> list[int]:
    """The tokens of a question, as the chat template writes it, up to where the answer begins."""
    said = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@contextmanager
def model_of(folder: Path, catalog: Catalog) -> Iterator[tuple[Any, Any]]:
    """(model, tokenizer) of a finished run, let go of afterwards: the next stage needs the memory."""
    import gc

    from luthier.core.trained import read_run, run_tokenizer, trained_model

    plan = read_run(folder)
    tokenizer = run_tokenizer(plan, folder, catalog)
    held: list[Any] = [trained_model(plan, folder, catalog, tokenizer)]
    try:
        yield held[0], tokenizer
    finally:
        held.clear()
        gc.collect()
