"""Advantages against their formulas in float64, losses and gradients against TRL's own trainers on the same batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from luthier.core.generation import Answer
from luthier.plugins._trl import rollout
from luthier.plugins._trl.trainer import placeholder

REWARD = [{"use": "length", "max_tokens": 3}, {"use": "regex", "pattern": "[a-m]", "weight": 2}]


def rolled_out(trainer: Any) -> dict[str, torch.Tensor]:
    """A whole rollout, as the first step would have it before it is shuffled and split."""
    trainer.model.train()
    prompts = next(iter(trainer.schedule))
    made: dict[str, torch.Tensor] = trainer._generate_and_score_completions([{"prompt": row} for row in prompts])
    return made


def rewards_of(trainer: Any) -> torch.Tensor:
    """The weighted sums of the answers just made, float64 (answers,), by hand."""
    totals = []
    for answer in trainer._made:
        count = len(answer.ids) - answer.finished
        within = min(1.0, 3 / count) if count else 1.0
        totals.append(within + 2 * any(letter in "abcdefghijklm" for letter in answer.text))
    return torch.tensor(totals, dtype=torch.float64)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_grpo(inside: Any, scale: str) -> None:
    def look(trainer: Any) -> None:
        made = rolled_out(trainer)
        groups = rewards_of(trainer).view(4, 4)
        assert groups.std(1).max() > 0.1  # otherwise nothing is compared
        centred = groups - groups.mean(1, keepdim=True)
        divisor = {"group": groups.std(1, keepdim=True) + 1e-4, "batch": groups.std() + 1e-4, "none": torch.ones(())}[scale]
        assert torch.allclose(made["advantages"].double(), (centred / divisor).view(-1), atol=1e-4)

    inside({"reward": REWARD, "scale_rewards": scale, "prompts_per_step": 4}, look)


def test_advantages_of_rloo(inside: Any) -> None:
    def look(trainer: Any) -> None:
        made = rolled_out(trainer)
        groups = rewards_of(trainer).view(4, 4)
        others = (groups.sum(1, keepdim=True) - groups) / 3
        # The reference is the policy, which has not moved: no divergence is taken off.
        assert torch.allclose(made["advantages"].double(), (groups - others).view(-1), atol=1e-5)

    inside({"use": "rloo", "reward": REWARD, "beta": 0.1, "prompts_per_step": 4}, look)


def test_rloo_clips_rewards_and_normalises_advantages(inside: Any) -> None:
    def look(trainer: Any) -> None:
        made = rolled_out(trainer)
        rewards = rewards_of(trainer)
        assert rewards.max() > 1.5  # otherwise nothing is clipped
        groups = rewards.clamp(-1.5, 1.5).view(4, 4)
        raw = (groups - (groups.sum(1, keepdim=True) - groups) / 3).view(-1)
        assert torch.allclose(made["advantages"].double(), (raw - raw.mean()) / (raw.std() + 1e-4), atol=1e-4)

    options = {"reward_clip": 1.5, "normalize_advantages": True, "beta": 0, "prompts_per_step": 4}
    inside({"use": "rloo", "reward": REWARD, **options}, look)


def moved(model: Any, by: float) -> Any:
    """A copy whose weights are a little off."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            parameter += by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return other


def logps(model: Any, inputs: dict[str, torch.Tensor], temperature: float = 1.0) -> torch.Tensor:
    """Of the answers, under TRL's padding; llama sees no difference."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, inputs["prompt_ids"].shape[1] - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, inputs["completion_ids"][:, :, None])[:, :, 0]


def theirs(kind: Any, arguments: Any, trainer: Any, folder: Path, beta: float, **options: Any) -> Any:
    """TRL's own trainer, with its own forward, on a copy of the model; `beta` goes in afterwards, as its reference would."""
    args = arguments(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=8,
        temperature=0.8,
        beta=0.0,
        epsilon=0.05,
        num_iterations=2,
        **options,
    )
    made = kind(
        model=copy.deepcopy(trainer.model),
        reward_funcs=lambda **_: [],
        args=args,
        train_dataset=placeholder(),
        processing_class=copy.deepcopy(trainer.runtime.tokenizer),
    )
    made.beta = beta
    made.current_gradient_accumulation_steps = trainer.current_gradient_accumulation_steps = 1
    return made


def compare(ours: Any, other: Any, inputs: dict[str, torch.Tensor]) -> None:
    for trainer in (ours, other):
        trainer.model.train()
        trainer.model.zero_grad()
        trainer.loss = trainer.compute_loss(trainer.model, inputs)
        trainer.loss.backward()
    assert abs(float(other.loss)) > 1e-3
    assert torch.allclose(ours.loss, other.loss, atol=1e-5)
    pairs = list(zip(ours.model.named_parameters(), other.model.parameters(), strict=True))
    assert any(parameter.grad.norm() > 1e-3 for (_, parameter), _ in pairs)
    for (name, one), two in pairs:
        assert torch.allclose(one.grad, two.grad, atol=1e-5), name
    clipped = [trainer._metrics["train"]["clip_ratio/region_mean"][-1] for trainer in (ours, other)]
    assert clipped[0] == pytest.approx(clipped[1])
    assert 0 < clipped[0] < 1


STAGE = {"reward": REWARD, "temperature": 0.8, "epsilon": 0.05, "num_iterations": 2}


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(
    ("loss_type", "ratio"), [("dapo", "token"), ("grpo", "token"), ("dr_grpo", "token"), ("grpo", "sequence")]
)
def test_the_loss_of_grpo_is_that_of_trl(inside: Any, tmp_path: Path, loss_type: str, ratio: str, beta: float) -> None:
    def look(trainer: Any) -> None:
        inputs = rolled_out(trainer)
        now = logps(trainer.model, inputs, 0.8)
        # Some answers have become likelier, some less, by up to 20%; 5% is where the ratio is clipped.
        inputs["old_per_token_logps"] = now + torch.linspace(-0.2, 0.2, len(now))[:, None] + 0.01 * torch.randn(now.shape)
        if beta:
            inputs["ref_per_token_logps"] = logps(moved(trainer.model, 1e-2), inputs, 0.8)
        options = {"loss_type": loss_type, "importance_sampling_level": ratio}
        compare(trainer, theirs(GRPOTrainer, GRPOConfig, trainer, tmp_path / "trl", beta, **options), inputs)

    inside({**STAGE, "loss_type": loss_type, "ratio": ratio, "beta": beta}, look)


def test_the_loss_of_rloo_is_that_of_trl(inside: Any, tmp_path: Path) -> None:
    def look(trainer: Any) -> None:
        inputs = rolled_out(trainer)
        old = logps(moved(trainer.model, 5e-3), inputs, 0.8)
        inputs["old_logps"] = (old * inputs["completion_mask"]).sum(1)
        compare(trainer, theirs(RLOOTrainer, RLOOConfig, trainer, tmp_path / "trl", 0.1), inputs)

    inside({**STAGE, "use": "rloo", "beta": 0.1}, look)


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_the_split_into_micro_batches_changes_nothing(run: Any, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of one micro-batch and of four, from the same answers: the same loss and the same gradient norm."""

    def answers(model: Any, tokenizer: Any, prompts: Any, *_: Any, **__: Any) -> list[Answer]:
        random = torch.Generator().manual_seed(3)
        made = [torch.randint(97, 123, (2 + number % 6,), generator=random).tolist() for number in range(len(prompts))]
        return [Answer(ids=ids, finished=False) for ids in made]

    monkeypatch.setattr(rollout, "generate", answers)
    given = {"use": stage, "reward": REWARD, "prompts_per_step": 4}
    whole = run(given, output="whole", batch_tokens=4096, max_steps=1).told("step")[0]
    split = run(given, output="split", batch_tokens=160, max_steps=1).told("step")[0]
    assert split["reward"] == pytest.approx(whole["reward"])
    assert whole["grad_norm"] > 1e-2
    assert split["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert split["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
