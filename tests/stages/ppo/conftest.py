"""Small models with adapters, rollouts made by hand, and whole runs on a tiny model, for the tests of `ppo`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stages.running import Heard, write_rows

WORDS = ("ash", "birch", "cedar", "elm", "fir", "oak")


def tiny(kind: str = "llama", *, dtype: Any = None, adapter: Mapping[str, Any] | None = None, seed: int = 0) -> Any:
    """The contract kit's tiny model; with `adapter` a LoRA on all its linear layers, whose updates are not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.core.testing.models import tiny_model

    model: Any = tiny_model(kind).load(dtype=dtype or torch.float32)
    if adapter is None:
        return model
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **adapter}
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(**options))
    fill(wrapped, seed)
    return wrapped


def fill(model: Any, seed: int, only: str = "") -> None:
    """Random numbers in every B (of one adapter), so that it changes what the model computes."""
    import torch

    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name and only in name:
            parameter.data = torch.randn(parameter.shape, generator=random).to(parameter) * 0.1


@dataclass
class Made:
    """One batch of answers to random prompts, with made-up advantages, returns and old numbers; and what learns from it."""

    roles: Any
    measure: Any
    rollout: Any
    advantages: Any
    returns: Any
    config: Any

    def learner(self, **changes: Any) -> Any:
        """A learner whose optimizer moves nothing unless `lr` is given."""
        import torch

        from luthier.plugins.ppo.updates import Learner

        lr = changes.pop("lr", 0.0)
        roles = self.roles

        def build() -> Any:
            trained = [one for one in roles.model.parameters() if one.requires_grad]
            return torch.optim.SGD(trained, lr=lr), None, ()

        runtime: Any = SimpleNamespace(build_optimizer=build)
        return Learner(runtime, changes.get("config", self.config), self.measure, updates=1)


def made_of(roles: Any, *, rows: int = 5, minibatches: int = 1, batch_tokens: int = 60, **options: Any) -> Made:
    """Answers are random tokens; nothing is generated."""
    import torch

    from luthier.core.config.schema import Choice
    from luthier.core.frozen import FrozenDict
    from luthier.core.generation import Answer, Sampling
    from luthier.core.testing.models import tiny_tokenizer
    from luthier.plugins.ppo import PpoConfig
    from luthier.plugins.ppo.rollout import Measure, Rollout, split

    reward = (Choice(use="length", options=FrozenDict({"max_words": 2})),)
    config = PpoConfig(reward=reward, batch=rows, mini_batches=minibatches, ppo_epochs=1, max_new_tokens=16, **options)
    measure = Measure(
        roles=roles,
        tokenizer=tiny_tokenizer(),
        sampling=Sampling(max_new_tokens=16, min_new_tokens=config.min_new_tokens, temperature=config.temperature),
        batch_tokens=batch_tokens,
        autocast=nullcontext,
    )
    random = torch.Generator().manual_seed(5)

    def draw(size: int) -> list[int]:
        return torch.randint(3, 250, (size,), generator=random).tolist()

    lengths = [3 + (7 * row) % 11 for row in range(rows)]
    prompts = [draw(4 + row) for row in range(rows)]
    answers = [Answer(ids=draw(length), finished=True) for length in lengths]
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]

    def numbers() -> Any:
        return torch.where(mask, torch.randn(mask.shape, generator=random), 0)

    old = torch.where(mask, -4 + 0.2 * numbers(), 0)
    parts = split([len(p) + len(a.ids) for p, a in zip(prompts, answers, strict=True)], minibatches, batch_tokens)
    rollout = Rollout(list(range(rows)), prompts, answers, mask, old, numbers(), numbers(), numbers(), parts)
    return Made(roles, measure, rollout, numbers(), numbers(), config)


@dataclass
class RunOf(Heard):
    """Whole runs on a tiny model through the front door; what all of them told is kept."""

    folder: Path
    model: Path

    def config(self, *, stage: Mapping[str, Any] = {}, train: Mapping[str, Any] = {}, **changes: Any) -> dict[str, Any]:
        rows = self.folder / "prompts.jsonl"
        if not rows.exists():
            write_rows(rows, [{"prompt": f"say {word} {n}"} for n in range(4) for word in WORDS])
        options = {
            "use": "ppo",
            "reward": [{"use": "length", "max_tokens": 4}],
            "batch": 6,
            "mini_batches": 2,
            "ppo_epochs": 2,
            "max_new_tokens": 8,
        }
        return {
            "model": str(self.model),
            "data": {"train": [str(rows)], "max_length": 64},
            "stage": options | dict(stage),
            "adapter": {"use": "lora", "rank": 4},
            "optimizer": {"use": "adamw", "lr": 0.003},
            "patches": [],
            "precision": "fp32",
            "train": {"batch_tokens": 128, "max_steps": 4, "seed": 1, **train},
            "output": str(self.folder / "run"),
        } | changes

    def __call__(self, *, resume: bool = False, stop: Any = None, observers: Any = (), **changes: Any) -> dict[str, Any]:
        """all_results.json of a run."""
        import luthier

        extra = {"stop": stop} if stop is not None else {}
        config = luthier.load_config(self.config(**changes))
        return luthier.train(config, observers=[self.events.append, *observers], resume=resume, **extra)


@pytest.fixture
def run_of(tmp_path: Path, tiny_folder: Callable[..., Path]) -> RunOf:
    return RunOf([], tmp_path, tiny_folder("llama"))


@pytest.fixture
def model() -> Any:
    return tiny


@pytest.fixture
def made() -> Any:
    return made_of


@pytest.fixture
def filled() -> Any:
    return fill
