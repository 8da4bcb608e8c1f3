"""An optimizer step of `dpo`: every row weighs the same however it is split, tokens are counted, TRL leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import log_softmax, logsigmoid

from luthier.plugins._trl.batches import pair_batches
from luthier.plugins.dpo import DpoConfig
from luthier.plugins.dpo.stage import DpoTrainer
from tests.stages.running import preferences, shake

SPLITS = ([[0, 1, 2, 3, 4, 5, 6, 7]], [[0, 1, 2, 3, 4], [5], [6, 7]], [[7], [0], [1, 2], [3, 4, 5, 6]])


def answer_log_prob(model: Any, example: Any) -> torch.Tensor:
    """The sum over the learned tokens, without padding and batches."""
    ids, labels = torch.from_numpy(example["input_ids"]), torch.from_numpy(example["labels"])
    logs = log_softmax(model(input_ids=ids[None], use_cache=False).logits[0, :-1], dim=-1)
    learned = (labels[1:] != -100).nonzero()[:, 0]
    return logs[learned, ids[1:][learned]].sum()


def step_gradient(trainer: Any, split: list[list[int]]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one optimizer step over these micro-batches."""
    trainer.model.zero_grad()
    batches = [trainer.data_collator([trainer.train_dataset[row] for row in rows]) for rows in split]
    items = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=items)
        loss.backward()
        total += loss.item()
    return total, gradient(trainer.model)


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


@pytest.mark.parametrize("loss", [{"sigmoid": 1.0}, {"sigmoid": 1.0, "sft": 0.5}], ids=["sigmoid", "with-sft"])
def test_the_split_into_micro_batches_does_not_matter(bench: Any, loss: dict[str, float]) -> None:
    """Against the formula, in float64: the mean over all rows of the step, and for `sft` that over their chosen tokens."""
    runtime = bench.attached(adapter={"use": "lora", "rank": 4, "init": "pissa"})
    model: Any = runtime.model.double()
    trainer = DpoTrainer(runtime, pair_batches(runtime), DpoConfig(loss=loss, beta=0.3))
    assert trainer.reference.how == "copied"
    rows = [trainer.train_dataset[row] for row in range(8)]
    with torch.no_grad():
        before = [[answer_log_prob(model, row[one]) for one in ("chosen", "rejected")] for row in rows]
    shake(model)
    now = [[answer_log_prob(model, row[one]) for one in ("chosen", "rejected")] for row in rows]
    margins = torch.stack([0.3 * ((a - c) - (b - d)) for (a, b), (c, d) in zip(now, before, strict=True)])
    tokens = sum(int((row["chosen"]["labels"] != -100).sum()) for row in rows)
    expected = -logsigmoid(margins).mean() - loss.get("sft", 0.0) * sum(chosen for chosen, _ in now) / tokens
    model.zero_grad()
    expected.backward()
    wanted = gradient(model)
    for split in SPLITS:
        value, found = step_gradient(trainer, split)
        assert value == pytest.approx(expected.item(), rel=1e-9)
        assert float((found - wanted).abs().max()) <= 1e-9 * float(wanted.abs().max())


def test_a_run_moves_the_same_with_accumulation_1_and_4(bench: Any) -> None:
    weights = []
    for name, train in (("one", {"batch_tokens": 4096}), ("four", {"batch_tokens": 310, "accumulation": 4})):
        ran = bench.run(
            output=name, train={"max_steps": 1, "seed": 1, **train}, optimizer={"use": "sgd", "lr": 1.0, "warmup": 0}
        )
        weights.append((ran, load_file(ran.folder / "adapter_model.safetensors")))
    (one, first), (four, second) = weights
    assert one.results["tokens"] == four.results["tokens"], "not the same rows in the step"
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)
    assert max(float(value.abs().max()) for name, value in first.items() if "lora_B" in name) > 0.01
    assert four.told("start")[0]["padding"] < one.told("start")[0]["padding"], "the step was not split"
    (told,), (other,) = one.told("step"), four.told("step")
    for key in ("loss", "accuracy", "margin", "reward_chosen", "logp_chosen", "logp_rejected"):
        assert other[key] == pytest.approx(told[key], rel=1e-5, abs=1e-6)


def test_tokens_of_both_answers_are_counted(bench: Any) -> None:
    """One epoch: all tokens of the rows, and of them those with a label; byte-level, so they can be counted by hand."""
    row = {"prompt": "a", "chosen": "bb", "rejected": "cccc"}
    ran = bench.run(rows=[{**row, "prompt": f"a{number:02}"} for number in range(5)])
    # <user> a 0 0 <eos> \n <assistant> + answer + <eos> \n
    chosen, rejected = 7 + 2 + 2, 7 + 4 + 2
    assert ran.results["tokens"] == 5 * (chosen + rejected)
    assert ran.results["trained_tokens"] == 5 * (3 + 5)
    (start,) = ran.told("start")
    assert start["rows"] == 5
    # Each pair is padded to its longer answer.
    assert start["padding"] == pytest.approx(1 - (chosen + rejected) / (2 * rejected))


def test_a_pair_longer_than_a_batch_is_one_and_is_warned_about(bench: Any) -> None:
    long = {"prompt": "a" * 40, "chosen": "b" * 30, "rejected": "c"}
    ran = bench.run(rows=[*preferences(6), long], train={"batch_tokens": 80})
    assert any("1 batches of a single row are longer than train.batch_tokens (80)" in one.message for one in ran.events)
    assert ran.results["tokens"] > 0


def test_checkpointing_gives_the_same_and_stays_on(bench: Any) -> None:
    plain = bench.run(output="plain", train={"max_steps": 4})
    patched = bench.run(output="patched", train={"max_steps": 4}, patches=["checkpointing"])
    assert patched.losses == pytest.approx(plain.losses, rel=1e-5)
    runtime = bench.attached(output="third", patches=["checkpointing"])
    layers = [one for one in runtime.model.modules() if getattr(one, "gradient_checkpointing", False)]
    functions = [one._gradient_checkpointing_func for one in layers]
    trainer = DpoTrainer(runtime, pair_batches(runtime), DpoConfig())
    trainer.fit()
    assert layers
    assert all(one.gradient_checkpointing for one in layers)
    assert [one._gradient_checkpointing_func for one in layers] == functions


@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": {"use": "lora", "rank": 4, "init": "pissa"}},
        {"adapter": {"use": "full"}},
        # TRL would cast what trains on it to bfloat16.
        {"adapter": {"use": "lora", "rank": 4}, "patches": ["nf4"]},
    ],
    ids=["pissa", "full", "nf4"],
)
def test_trl_leaves_no_trace(bench: Any, sections: Any) -> None:
    runtime = bench.attached(**sections)
    model: Any = runtime.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, generation = base.config.to_dict(), base.generation_config.to_dict()
    dtypes = {name: value.dtype for name, value in model.named_parameters()}
    tokenizer = (runtime.tokenizer.pad_token, runtime.tokenizer.eos_token, runtime.tokenizer.padding_side)
    DpoTrainer(runtime, pair_batches(runtime), DpoConfig()).fit()
    assert "forward" not in vars(base)
    assert "forward" not in vars(model)
    assert not getattr(base, "model_tags", None)
    assert base.config.to_dict() == config
    assert base.generation_config.to_dict() == generation
    assert {name: value.dtype for name, value in model.named_parameters() if ".reference." not in name} == dtypes
    assert (runtime.tokenizer.pad_token, runtime.tokenizer.eos_token, runtime.tokenizer.padding_side) == tokenizer
    assert set(getattr(model, "peft_config", {"default": None})) <= {"default", "reference"}


def test_what_is_saved_is_what_sft_would_save(bench: Any) -> None:
    """The same files with the same names and keys, whichever way the reference was had."""
    saved: dict[str, Any] = {}
    for how in ("disabled", "copied"):
        folder = bench.run(output=how, train={"max_steps": 2}, stage={"use": "dpo", "reference": how}).folder
        saved[how] = keys_of(folder)
    chats = [{"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "b"}]} for n in range(6)]
    sft = bench.run(rows=chats, output="sft", train={"max_steps": 2}, stage="sft").folder
    assert saved["disabled"] == saved["copied"] == keys_of(sft)


def keys_of(folder: Path) -> tuple[set[str], Any, set[str]]:
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    return {path.name for path in folder.iterdir()}, config, set(tensors)


def test_nothing_is_sent(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's constructors send what is trained to Hugging Face, where nothing forbids it."""
    from trl.trainer import base_trainer

    def refuse(*args: Any, **more: Any) -> None:
        raise AssertionError("telemetry was sent")

    monkeypatch.setattr(base_trainer, "send_telemetry", refuse)
    monkeypatch.delenv("CI", raising=False)
    bench.run(train={"max_steps": 1})
