"""Rollouts on tiny models: a whole run, a trainer to look into, and a model that has been taught a few answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.extensions import RunEvent
from tests.stages.running import Ran, Row, carry_out, with_body, write_rows

PROMPTS: list[Row] = [
    {"prompt": f"say {word}"} for word in ("ash", "birch", "cedar", "elm", "fir", "a longer word", "oak", "pine")
]


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Any:
    """`run(stage={...}, rows=..., output="run", model=..., adapter=..., body=None, **train) -> Ran`.

    With `body(runtime, config)` that is done in place of the stage's own run.
    """
    default: list[Path] = []

    def make(
        stage: dict[str, Any],
        *,
        rows: Sequence[Row] = PROMPTS,
        output: str = "run",
        model: Path | None = None,
        adapter: Any = "full",
        data: Mapping[str, Any] = {},
        lr: float = 1e-3,
        observers: tuple[Callable[[RunEvent], None], ...] = (),
        resume: bool = False,
        stop: threading.Event | None = None,
        body: Callable[[Any, Any], Mapping[str, float]] | None = None,
        **train: Any,
    ) -> Ran:
        if model is None:
            default.extend([] if default else [tiny_folder("llama")])
            model = default[0]
        config = {
            "model": str(model),
            "data": {"train": [write_rows(tmp_path / "rows.jsonl", rows)], "max_length": 64, **data},
            "stage": {"use": "grpo", "num_generations": 4, "prompts_per_step": 2, "max_new_tokens": 8, **stage},
            "adapter": adapter,
            "optimizer": {"use": "adamw", "lr": lr, "schedule": "constant", "warmup": 0},
            "patches": [],
            "precision": "fp32",
            "train": {"batch_tokens": 512, "max_steps": 2, "log_every": 1, "seed": 1, **train},
            "output": str(tmp_path / output),
        }
        catalog = with_body(config, body) if body is not None else None
        return carry_out(config, catalog=catalog, observers=observers, resume=resume, stop=stop)

    return make


@pytest.fixture
def inside(run: Any) -> Any:
    """`inside(stage, look, **as run)`: `look(trainer)` is called with the stage's trainer before it fits."""

    def make(stage: dict[str, Any], look: Callable[[Any], None], **options: Any) -> None:
        from luthier.plugins.grpo import stage as grpo
        from luthier.plugins.rloo import stage as rloo

        def body(runtime: Any, config: Any) -> Mapping[str, float]:
            module, kind = (rloo, rloo.RlooTrainer) if stage.get("use") == "rloo" else (grpo, grpo.GrpoTrainer)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kind, "fit", look)
                module.train(runtime, config)
            return {}

        run(stage, body=body, **options)

    return make


@pytest.fixture(scope="session")
def taught(tiny_folder: Callable[..., Path]) -> Callable[..., Path]:
    """`taught(prompts, answers, steps=...) -> Path`: a tiny llama that gives one of the answers to any of the prompts."""
    made: dict[str, Path] = {}

    def make(prompts: Sequence[str], answers: Sequence[str], *, steps: int = 150) -> Path:
        key = repr((prompts, answers, steps))
        if key not in made:
            made[key] = tiny_folder("llama")
            _teach(made[key], prompts, answers, steps)
        return made[key]

    return make


def _teach(folder: Path, prompts: Sequence[str], answers: Sequence[str], steps: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = []
    for prompt in prompts:
        for text in answers:
            said = [{"role": "user", "content": prompt}]
            before = tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
            whole = tokenizer.apply_chat_template([*said, {"role": "assistant", "content": text}])["input_ids"]
            rows.append((whole, [-100] * len(before) + whole[len(before) :]))
    width = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([one + [pad] * (width - len(one)) for one, _ in rows])
    labels = torch.tensor([one + [-100] * (width - len(one)) for _, one in rows])
    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one, _ in rows])
    for _ in range(steps):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
