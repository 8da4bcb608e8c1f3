"""The loss of `dpo` on fixed rows is that of TRL's own DPOTrainer, run plainly on the same token ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from luthier.plugins._trl.batches import pair_batches
from luthier.plugins.dpo.stage import DpoTrainer
from tests.stages.running import shake

# What is asked of us, and what TRL is asked for.
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    name: ({"loss": name, **ours}, {"loss_type": [name], **theirs})
    for name, ours, theirs in (
        ("sigmoid", {}, {}),
        ("sigmoid_norm", {}, {}),
        ("hinge", {"beta": 0.5}, {"beta": 0.5}),
        ("ipo", {}, {}),
        ("robust", {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ("exo_pair", {"label_smoothing": 0.001}, {"label_smoothing": 0.001}),
        ("nca_pair", {}, {}),
        ("bco_pair", {}, {}),
        ("sppo_hard", {}, {}),
        ("apo_zero", {}, {}),
        ("apo_down", {}, {}),
        ("aot", {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ("aot_unpaired", {}, {}),
        ("discopop", {"discopop_tau": 0.1}, {"discopop_tau": 0.1}),
        ("sft", {}, {}),
    )
} | {
    "several": (
        {"loss": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
    "forward_kl": ({"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    "js": ({"divergence": "js_divergence"}, {"f_divergence_type": "js_divergence"}),
    "alpha": (
        {"divergence": "alpha_divergence", "divergence_alpha": 0.7},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
    "ld": ({"ld_alpha": 0.3}, {"ld_alpha": 0.3}),
}


def plain_loss(policy: Any, reference: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: Path, options: Any) -> float:
    """TRL's, of rows as its own data collator makes a batch of them."""
    arguments = DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=None,
        max_length=None,
        report_to=[],
        **options,
    )
    text = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    trainer = DPOTrainer(
        model=policy, ref_model=reference, args=arguments, train_dataset=text, processing_class=copy.deepcopy(tokenizer)
    )
    batch = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)(rows)
    return float(trainer.compute_loss(trainer.model.train(), batch).item())


def ids(example: Any) -> tuple[list[int], list[int]]:
    """Those of the prompt and those of the answer, without what the template writes after it and nobody learns."""
    learned = (example["labels"] != -100).nonzero()[0]
    begin, end = learned[0], learned[-1] + 1
    assert len(learned) == end - begin
    return example["input_ids"][:begin].tolist(), example["input_ids"][begin:end].tolist()


@pytest.fixture(scope="module")
def base(make_bench: Any) -> Any:
    """A runtime in which every parameter trains, one for each kernel; the tests put its weights back."""
    return {
        kernel: make_bench().attached(adapter="full", attention=kernel, stage={"use": "dpo", "reference": "model"})
        for kernel in ("sdpa", "eager")
    }


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_trls(base: Any, tmp_path: Path, name: str, kernel: str) -> None:
    ours, theirs = LOSSES[name]
    runtime = base[kernel]
    model, start = runtime.model, copy.deepcopy(runtime.model.state_dict())
    folder = runtime.plan.model.path
    batches = pair_batches(runtime)
    rows = [batches.train_rows[row] for row in range(8)]
    config = type(runtime.method(runtime.plan.step("stage"))[1])(**ours, reference="model")
    trainer = DpoTrainer(runtime, batches, config)
    shake(model)
    loss = trainer.compute_loss(model.train(), batches.collate(rows)).item()
    policy = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel, dtype=torch.float32)
    policy.load_state_dict(model.state_dict())
    model.load_state_dict(start)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel, dtype=torch.float32)
    pairs = [
        {"prompt_ids": ids(row["chosen"])[0], "chosen_ids": ids(row["chosen"])[1], "rejected_ids": ids(row["rejected"])[1]}
        for row in rows
    ]
    expected = plain_loss(policy, reference, AutoTokenizer.from_pretrained(folder), pairs, tmp_path, theirs)
    assert loss == pytest.approx(expected, rel=1e-5)
