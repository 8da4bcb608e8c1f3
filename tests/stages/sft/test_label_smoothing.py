"""Smoothed labels: the formula in float64, and a run's loss and gradient whatever its rows are packed or split into."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.plugins.sft.stage import smoothed_loss

EPSILON = 0.2


def by_the_formula(logits: torch.Tensor, labels: torch.Tensor, epsilon: float) -> tuple[float, int]:
    """(sum, tokens): (1 - e) * -log p(y) + e * mean over the vocabulary of -log p, written out token by token in float64."""
    total, tokens = 0.0, 0
    for row, wanted in zip(logits.double().tolist(), labels.tolist(), strict=True):
        for position in range(1, len(wanted)):
            if wanted[position] == -100:
                continue
            scores = row[position - 1]
            top = max(scores)
            normaliser = top + math.log(sum(math.exp(score - top) for score in scores))
            costs = [normaliser - score for score in scores]
            total += (1 - epsilon) * costs[wanted[position]] + epsilon * sum(costs) / len(costs)
            tokens += 1
    return total, tokens


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_the_sum_is_that_of_the_formula(epsilon: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 7, 11, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 11, (2, 7), generator=generator)
    labels[0, :3] = -100
    labels[1, 5:] = -100
    expected, _ = by_the_formula(logits, labels, epsilon)
    assert float(smoothed_loss(logits, labels, epsilon)) == pytest.approx(expected, rel=1e-12)
    assert float(smoothed_loss(logits.float(), labels, epsilon)) == pytest.approx(expected, rel=1e-5)


def test_halves_are_summed_in_float32() -> None:
    logits = torch.randn(1, 400, 11, generator=torch.Generator().manual_seed(3)).bfloat16()
    labels = torch.randint(0, 11, (1, 400), generator=torch.Generator().manual_seed(4))
    expected, _ = by_the_formula(logits, labels, 0.1)
    assert float(smoothed_loss(logits, labels, 0.1)) == pytest.approx(expected, rel=1e-5)


def steps_of(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "step"]


def test_a_step_has_the_loss_of_the_formula_packed_padded_and_accumulated(config: Any, quietly: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from luthier.core.testing.models import tiny_tokenizer

    ways = {
        "padded": ({"batch_tokens": 8192}, {}),
        "packed": ({"batch_tokens": 8192}, {"packing": True}),
        "split": ({"batch_tokens": 64, "accumulation": 12}, {}),
    }
    found = {}
    for name, (train, data) in ways.items():
        stage = {"label_smoothing": EPSILON}
        settings = config(stage=stage, train={**train, "max_steps": 2}, data={**data, "eval": 0.0}, output=name)
        quietly(settings)
        found[name] = steps_of(tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
    total, tokens = 0.0, 0
    for line in Path(settings["data"]["train"][0]).read_text(encoding="utf-8").splitlines():
        user, assistant = (message["content"] for message in json.loads(line)["messages"])
        prompt = tiny_tokenizer()(f"<|user|>{user}<eos>\n<|assistant|>", add_special_tokens=False).input_ids
        answer = tiny_tokenizer()(f"{assistant}<eos>", add_special_tokens=False).input_ids
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        one, count = by_the_formula(logits, torch.tensor([[-100] * len(prompt) + answer]), EPSILON)
        total, tokens = total + one, tokens + count
    for name, steps in found.items():
        assert steps[0]["loss"] == pytest.approx(total / tokens, rel=1e-5), name
        # The second step's loss tells whether the gradient of the first was the same.
        assert steps[1]["loss"] == pytest.approx(found["padded"][1]["loss"], rel=1e-4), name


def test_the_held_out_loss_is_without_it(config: Any, quietly: Any) -> None:
    """Before anything moved, the held-out loss is that of a run without smoothing."""
    still = {"max_steps": 1, "eval_every": 1}
    losses = []
    for epsilon in (0.0, EPSILON):
        settings = config(stage={"label_smoothing": epsilon}, train=still, output=f"run-{epsilon}")
        settings["optimizer"]["lr"] = 1e-12
        losses.append(quietly(settings)["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
