"""The loss of `rm` is TRL's on the same tokens, and an optimizer step weighs every pair the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from luthier.core.testing import measuring
from luthier.core.testing.models import tiny_model
from luthier.plugins._trl.batches import pair_batches
from luthier.plugins.rm import RmConfig
from luthier.plugins.rm.stage import RmTrainer, longer_is_better, up_to_the_end
from tests.stages.running import held
from tests.stages.score.conftest import pairs

OPTIONS: dict[str, tuple[RmConfig, dict[str, Any]]] = {
    "plain": (RmConfig(), {}),
    "centred": (RmConfig(centering=0.3), {"center_rewards_coefficient": 0.3}),
}


def margins(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"margin": 0.25 * number} for number, row in enumerate(rows)]


def trls_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: Path, options: Any) -> float:
    """What TRL's own trainer makes of these token ids, with its own data collator."""
    arguments = RewardConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=None, report_to=[], **options
    )
    trainer = RewardTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=copy.deepcopy(tokenizer)
    )
    batch = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)(rows)
    return float(trainer.compute_loss(trainer.model.train(), batch).item())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("with_margins", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_trls(name: str, with_margins: bool, kernel: str, rm_config: Any, tmp_path: Path) -> None:
    ours, theirs = OPTIONS[name]
    folder = tiny_model("llama").folder
    data = margins(pairs(8)) if with_margins else pairs(8)
    runtime = held(rm_config(folder, data, data={"eval": 0}, adapter="full", attention=kernel))
    model = runtime.model
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))  # rewards that matter
    batches = pair_batches(runtime, margins=True)
    trainer = RmTrainer(runtime, batches, ours)
    rows = [batches.train_rows[row] for row in range(8)]
    loss = trainer.compute_loss(model.train(), trainer.data_collator(rows)).item()
    ids = [
        {f"{which}_ids": up_to_the_end(row[which])["input_ids"].tolist() for which in ("chosen", "rejected")}
        | ({"margin": row["margin"]} if with_margins else {})
        for row in rows
    ]
    plain = AutoModelForSequenceClassification.from_pretrained(
        str(folder), num_labels=1, attn_implementation=kernel, dtype=torch.float32
    )
    plain.load_state_dict(model.state_dict())
    expected = trls_loss(plain, AutoTokenizer.from_pretrained(str(folder)), ids, tmp_path / "trl", theirs)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_step_weighs_every_pair_the_same(rm_config: Any) -> None:
    """Against the formula, pair by pair without padding, however the step is split; some pairs have a margin."""
    data = [row | ({"margin": 0.5} if number % 2 else {}) for number, row in enumerate(pairs(8))]
    runtime = held(rm_config(tiny_model("llama").folder, data, data={"eval": 0}))
    model = runtime.model
    measuring.shake(model)
    batches = pair_batches(runtime, margins=True)
    trainer = RmTrainer(runtime, batches, RmConfig(centering=0.1))
    rows = [batches.train_rows[row] for row in range(8)]
    assert sorted(row["margin"] for row in rows) == [0.0] * 4 + [0.5] * 4

    def reward(example: Any) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=torch.from_numpy(up_to_the_end(example)["input_ids"])[None]).logits[0, 0]
        return found

    def weights() -> torch.Tensor:
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        return torch.cat(gradients)

    model.train()
    each = []
    for row in rows:
        chosen, rejected = reward(row["chosen"]), reward(row["rejected"])
        each.append(-logsigmoid(chosen - rejected - row["margin"]) + 0.1 * (chosen + rejected) ** 2)
    expected = torch.stack(each).mean()
    expected.backward()
    gradient = weights()
    for split in ([range(8)], [range(5), [5], [6, 7]], [[7], [0], [1, 2], range(3, 7)]):
        micro = [trainer.data_collator([rows[row] for row in part]) for part in split]
        items = trainer._get_num_items_in_batch(micro, torch.device("cpu"))
        assert items == 8
        losses = [trainer.compute_loss(model, batch, num_items_in_batch=items) for batch in micro]
        for loss in losses:
            loss.backward()
        assert float(sum(losses)) == pytest.approx(float(expected), rel=1e-5)
        torch.testing.assert_close(weights(), gradient, rtol=1e-4, atol=1e-6)


def test_margins_can_be_left_out(rm_config: Any) -> None:
    runtime = held(rm_config(tiny_model("llama").folder, margins(pairs(8)), data={"eval": 0}))
    assert "margin" in pair_batches(runtime, margins=True).train_rows[0]
    assert "margin" not in pair_batches(runtime, margins=RmConfig(margins=False).margins).train_rows[0]


def test_a_row_ends_with_its_answer() -> None:
    """What the template writes after the answer's end token is cut off; a prompt stays whole."""
    ids, labels = np.arange(7), np.array([-100, -100, 2, 3, 4, -100, -100])
    cut = up_to_the_end({"input_ids": ids, "labels": labels})
    assert cut["input_ids"].tolist() == [0, 1, 2, 3, 4]
    assert cut["labels"].tolist() == [-100, -100, 2, 3, 4]


def test_the_longer_answer_counts_tokens_of_the_answer() -> None:
    """3 against 1 is right, 1 against 2 wrong, 2 against 2 a toss: (1 + 0 + 1/2) / 3; prompts do not count."""
    answers = [(3, 1), (1, 2), (2, 2)]
    examples: Any = [
        {"input_ids": np.arange(9), "labels": np.array([-100] * (9 - count) + [1] * count)}
        for pair in answers
        for count in pair
    ]
    assert longer_is_better(examples) == pytest.approx(0.5)
