"""The loss of tokenised rows against a float64 computation and the trainer's own; rows as questions, and their answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import luthier
from luthier.core.data import Examples
from luthier.core.evaluation.answers import NO_PROMPT, NO_ROOM, NO_TURN, answered, last_turn, questions, text_of
from luthier.core.evaluation.losses import perplexity, token_losses
from luthier.core.evaluation.metrics import TextMetrics
from luthier.core.evaluation.subjects import subject_of
from luthier.core.testing.models import tiny_model, tiny_tokenizer
from luthier.core.testing.surroundings import installed_catalog

LENGTHS = (5, 21, 9, 2, 14)


class Rows(Examples):
    """Random tokens, the first third of each row only read; of the fourth nothing is learned."""

    def __init__(self) -> None:
        random = np.random.RandomState(5)
        self._ids = [random.randint(0, 250, size=length).astype(np.int64) for length in LENGTHS]

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Any:
        ids = self._ids[index]
        labels = ids.copy()
        labels[: len(ids) if index == 3 else max(1, len(ids) // 3)] = -100
        return {"input_ids": ids, "labels": labels}

    @property
    def lengths(self) -> Any:  # type: ignore[override]
        return np.asarray(LENGTHS, dtype=np.int64)


@pytest.mark.parametrize("batch_tokens", [8, 64, 4096])
def test_losses_are_those_of_float64_row_by_row(batch_tokens: int) -> None:
    rows = Rows()
    model = tiny_model("llama").load(torch.float64)
    sums, counts = [], []
    for row in rows:
        ids, labels = torch.from_numpy(row["input_ids"]), torch.from_numpy(row["labels"])
        with torch.no_grad():
            chances = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        taken = [float(-chances[at - 1, ids[at]]) for at in range(1, len(ids)) if labels[at] != -100]
        sums.append(sum(taken))
        counts.append(len(taken))
    plain = tiny_model("llama").load().train()
    found = token_losses(plain, rows, batch_tokens=batch_tokens, pad_token_id=256)
    assert plain.training, "the mode comes back"
    assert found.tokens.tolist() == counts == [4, 14, 6, 0, 10]
    assert found.sums.tolist() == pytest.approx(sums, rel=1e-5)
    assert found.loss == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-4)
    assert found.of(1) == pytest.approx(sums[1] / counts[1], rel=1e-5)
    assert math.isnan(found.of(3))


def test_perplexity_of_a_hopeless_model_is_a_number() -> None:
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert math.isfinite(perplexity(1e6))


def test_the_loss_is_the_one_that_the_trainer_reports(tiny_folder: Any, tmp_path: Path) -> None:
    """A run's `eval_loss`, and `luthier.evaluate` of the run on the same rows."""
    lines = [{"text": f"row {number} " + "and so on " * (number % 4 + 1)} for number in range(10)]
    for name, part in (("train", lines[:6]), ("eval", lines[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    config = {
        "model": str(tiny_folder("llama")),
        "data": {"train": [str(tmp_path / "train.jsonl")], "eval": [str(tmp_path / "eval.jsonl")], "max_length": 64},
        "stage": "pt",
        "adapter": {"use": "lora", "rank": 4},
        "precision": "fp32",
        "train": {"max_steps": 2, "batch_tokens": 128},
        "output": str(tmp_path / "run"),
    }
    results = luthier.train(config)
    found = luthier.evaluate(tmp_path / "run", [tmp_path / "eval.jsonl"])
    assert (found.kind, found.stage, found.rows) == ("text", "pt", 4)
    assert found.metrics["loss"] == pytest.approx(results["eval_loss"], rel=1e-6)
    assert found.metrics["perplexity"] == pytest.approx(results["eval_perplexity"], rel=1e-5)
    assert found.metrics["tokens"] == results["eval_tokens"]
    # Of a run on a large GPU, the logits of a whole batch would be tens of GiB.
    written = tmp_path / "run" / "plan.json"
    plan = json.loads(written.read_text(encoding="utf-8"))
    plan["config"]["train"]["batch_tokens"] = 1_000_000
    written.write_text(json.dumps(plan), encoding="utf-8")
    subject = subject_of(str(tmp_path / "run"), installed_catalog(), luthier.api.read_model)  # type: ignore[arg-type]
    assert subject.batch_tokens == 4096


# ---- rows as questions


def example(text: str) -> Any:
    """Tokens of `text`, of which the parts in [brackets] are learned; the brackets are no part of it."""
    ids: list[int] = []
    labels: list[int] = []
    for part in text.replace("]", "[").split("["):
        tokens = tiny_tokenizer()(part, add_special_tokens=False).input_ids
        ids += tokens
        learned = f"[{part}]" in text
        labels += tokens if learned else [-100] * len(tokens)
    return {"input_ids": np.asarray(ids, dtype=np.int64), "labels": np.asarray(labels, dtype=np.int64)}


def test_the_last_learned_turn_is_the_reference_and_all_before_it_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    ends = (tokenizer.eos_token_id,)
    rows = [
        example("<|user|>hi<eos>\n<|assistant|>[yo<eos>]\n<|user|>why<eos>\n<|assistant|>[because<eos>]\n"),
        example("<|user|>hi<eos>\n<|assistant|>yo<eos>\n"),
        example("[all of it]"),
        example("<|user|>" + "long " * 30 + "<eos>\n<|assistant|>[x<eos>]"),
        example("<|user|>a<eos>\n<|assistant|>[cut off]"),
    ]
    found = questions(rows, tokenizer, ends, max_new_tokens=20, context=128)
    assert [(one.row, one.reference) for one in found.asked] == [(0, "because"), (4, "cut off")]
    prompt = "<|user|>hi<eos>\n<|assistant|>yo<eos>\n<|user|>why<eos>\n<|assistant|>"
    assert tokenizer.decode(found.asked[0].prompt) == prompt
    assert found.left_out == {1: NO_TURN, 2: NO_PROMPT, 3: NO_ROOM}
    assert found.reasons == {NO_TURN: 1, NO_PROMPT: 1, NO_ROOM: 1}
    assert len(questions(rows, tokenizer, ends, max_new_tokens=20, context=None).asked) == 3
    assert [one.row for one in questions(rows, tokenizer, ends, max_new_tokens=1, context=None, at_most=2).asked] == [0, 3]
    assert last_turn(rows[1]) is None


def test_a_text_ends_at_its_end_token_and_shows_the_other_special_ones() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("so <|user|>it is<eos>not this", add_special_tokens=False).input_ids
    assert text_of(ids, tokenizer, (tokenizer.eos_token_id,)) == "so <|user|>it is"
    assert text_of(tokenizer("open", add_special_tokens=False).input_ids, tokenizer, (tokenizer.eos_token_id,)) == "open"


def test_answers_are_the_likeliest_tokens() -> None:
    """Greedy by hand: the whole sequence again for every token, one row at a time, no cache and no padding."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama").load()
    ends = (tokenizer.eos_token_id,)
    rows = [example(f"<|user|>{ask}<eos>\n<|assistant|>[x<eos>]") for ask in ("hi", "a longer question", "no")]
    asked = questions(rows, tokenizer, ends, max_new_tokens=6, context=None).asked
    made = answered(model, tokenizer, asked, TextMetrics(["exact_match"]), max_new_tokens=6, batch_tokens=4096)
    for one in made:
        ids = list(one.question.prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
        assert one.prediction == text_of(ids[len(one.question.prompt) :], tokenizer, ends)
        assert one.finished == (ids[-1] in ends)
