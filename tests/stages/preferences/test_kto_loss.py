"""The loss of `kto` on fixed rows is that of TRL's own KTOTrainer; its estimate of the divergence is the definition's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.kto_trainer import KTOTrainer as PlainTrainer

from luthier.plugins.kto import KtoConfig
from luthier.plugins.kto.rated import rated_batches
from luthier.plugins.kto.stage import KtoTrainer
from tests.stages.preferences.conftest import step_loss
from tests.stages.running import rated

ROWS = 8
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kto": ({}, {}),
    "weights": (
        {"beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.6},
        {"beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.6},
    ),
    "apo": ({"loss": "apo_zero_unpaired"}, {"loss_type": "apo_zero_unpaired"}),
}


def parts(example: Any) -> tuple[list[int], list[int]]:
    """Those of the prompt and those of the answer, without what the template writes after it and nobody learns."""
    learned = (example["labels"] != -100).nonzero()[0]
    return example["input_ids"][: learned[0]].tolist(), example["input_ids"][learned[0] : learned[-1] + 1].tolist()


def trainer_of(runtime: Any, **options: Any) -> KtoTrainer:
    return KtoTrainer(runtime, rated_batches(runtime), KtoConfig(**options))


def towards_the_answers(trainer: Any) -> None:
    """Plain steps on all answers, so that the policy gives them more than the reference: the estimate is above 0."""
    model = trainer.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(trainer.train_dataset))])
    for _ in range(5):
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def plain_loss(policy: Any, reference: Any, tokenizer: Any, rows: list[Any], folder: Path, options: Any) -> Any:
    """(TRL's loss, its metrics), of rows as its own data collator makes a batch of them."""
    arguments = KTOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=None, report_to=[],
        per_device_train_batch_size=ROWS, **options,
    )  # fmt: skip
    text = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]})
    trainer = PlainTrainer(
        model=policy, ref_model=reference, args=arguments, train_dataset=text, processing_class=copy.deepcopy(tokenizer)
    )
    answers = [parts(row["example"])[1] for row in rows]
    given = [
        {
            "prompt_ids": parts(row["example"])[0],
            "completion_ids": answer,
            "KL_completion_ids": answers[place - 1],
            "label": row["label"],
        }
        for place, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
    batch = DataCollatorForUnpairedPreference(pad_token_id=tokenizer.pad_token_id)(given)
    loss = float(trainer.compute_loss(trainer.model.train(), batch).item())
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("name", CASES)
def test_it_is_trls(name: str, bench_of: Any, tmp_path: Path) -> None:
    ours, theirs = CASES[name]
    runtime = bench_of("kto").attached(adapter="full", rows=rated(8), stage={"use": "kto", "reference": "model"})
    trainer = trainer_of(runtime, **ours)
    towards_the_answers(trainer)
    loss = step_loss(trainer, [list(range(ROWS))])
    told = trainer.measured("train")
    folder = runtime.plan.model.path
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    policy.load_state_dict(runtime.model.state_dict())
    tokenizer, rows = AutoTokenizer.from_pretrained(folder), [trainer.train_dataset[row] for row in range(ROWS)]
    expected, metrics = plain_loss(policy, reference, tokenizer, rows, tmp_path / "trl", theirs)
    assert loss == pytest.approx(expected, rel=1e-5)
    if name != "apo":
        assert told["kl"] == pytest.approx(metrics["kl"], rel=1e-4)
        assert told["kl"] > 1  # else the estimate is 0, and any other would do
    assert told["reward_desirable"] == pytest.approx(metrics["rewards/chosen"], rel=1e-4)
    assert told["reward_undesirable"] == pytest.approx(metrics["rewards/rejected"], rel=1e-4)
    assert told["margin"] == pytest.approx(metrics["rewards/margins"], rel=1e-3, abs=1e-5)


def test_how_a_step_is_split_does_not_matter(bench_of: Any) -> None:
    """One estimate for all rows of the step, and every row weighs the same; also where a micro-batch has one kind alone."""
    runtime = bench_of("kto").attached(adapter="full", rows=rated(8), stage={"use": "kto", "reference": "model"})
    trainer = trainer_of(runtime, desirable_weight=1.3)
    towards_the_answers(trainer)
    good = [row for row in range(ROWS) if trainer.train_dataset.good[row]]
    bad = [row for row in range(ROWS) if not trainer.train_dataset.good[row]]
    assert len(good) > 1
    assert len(bad) > 1
    whole = step_loss(trainer, [[*good, *bad]])
    told = trainer.measured("train")
    for split in ([good, bad], [good[:1], [*good[1:], *bad[:1]], bad[1:]]):
        assert step_loss(trainer, split) == pytest.approx(whole, rel=1e-6)
        again = trainer.measured("train")
        assert again == pytest.approx(told, rel=1e-5)


@torch.no_grad()
def log_ratio(policy: Any, reference: Any, prompt: list[int], answer: list[int]) -> float:
    """log p - log p_reference of an answer, in float64."""
    ids = torch.tensor([prompt + answer])
    found = []
    for model in (policy, reference):
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(float(scores.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum()))
    return found[0] - found[1]


def test_the_divergence_by_definition(bench_of: Any) -> None:
    """The mean log-ratio of the answers under each other's prompts, over a step's rows and over all held-out ones."""
    runtime = bench_of("kto").attached(
        adapter="full", rows=rated(16), data={"eval": 6}, stage={"use": "kto", "reference": "model"}
    )
    trainer = trainer_of(runtime)
    reference = copy.deepcopy(runtime.model).double().eval()  # type: ignore[union-attr]
    towards_the_answers(trainer)
    policy = copy.deepcopy(runtime.model).double().eval()  # type: ignore[union-attr]

    def expected(rows: Any, numbers: list[int]) -> float:
        pieces = [parts(rows[row]["example"]) for row in numbers]
        ratios = [log_ratio(policy, reference, pieces[at][0], pieces[at - 1][1]) for at in range(len(pieces))]
        return max(float(np.mean(ratios)), 0.0)

    step_loss(trainer, [[3, 1], [5]])
    assert trainer.measured("train")["kl"] == pytest.approx(expected(trainer.train_dataset, [3, 1, 5]), rel=1e-5)
    metrics = trainer.evaluate()
    assert metrics["eval_kl"] == pytest.approx(expected(trainer.eval_dataset, list(range(6))), rel=1e-5)
    assert metrics["eval_kl"] > 0
    # The part of the rows on their side of it.
    right = []
    for row in (trainer.eval_dataset[number] for number in range(6)):
        prompt, answer = parts(row["example"])
        right.append((log_ratio(policy, reference, prompt, answer) > metrics["eval_kl"]) == row["label"])
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(right))


def test_mismatched_answers(bench_of: Any) -> None:
    """Each prompt gets the answer of the row before it; a row alone that of its neighbour in the data."""
    runtime = bench_of("kto").attached(adapter="full", rows=rated(8))
    rows = rated_batches(runtime).train_rows
    pieces = {row: parts(rows[row]["example"]) for row in range(ROWS)}
    for numbers, answers in (([2, 6, 3], [3, 2, 6]), ([4], [3]), ([0], [len(rows) - 1])):
        made, cut = rows.mismatched(numbers, 128)
        assert cut == 0
        for sequence, prompt, answer in zip(made, numbers, answers, strict=True):
            assert sequence["input_ids"][: len(pieces[prompt][0])].tolist() == pieces[prompt][0]
            learned = sequence["labels"] != -100
            assert not learned[: len(pieces[prompt][0])].any()
            assert sequence["labels"][learned].tolist() == parts(rows[answer]["example"])[1]
    longest = len(pieces[2][0]) + 1
    made, cut = rows.mismatched([2], longest)
    assert cut == 1
    assert len(made[0]["input_ids"]) == longest
