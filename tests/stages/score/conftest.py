"""Models with a score head as a run loads them, and rows whose better answer can be told."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.calling import call
from luthier.core.config.validate import parse_options
from luthier.core.frozen import FrozenDict, freeze
from luthier.core.loading import load_model
from luthier.core.plan import ModelReference, Plan
from luthier.core.profile import ArchitectureProfile
from luthier.core.score_head import pad_with
from luthier.core.scoring import profile_for
from luthier.core.testing.contract import build_context, precision
from luthier.core.testing.models import TinyModel, tiny_tokenizer
from luthier.core.testing.surroundings import installed, installed_catalog
from tests.stages.running import WORDS, write_rows

Load = Callable[..., Any]


def score_profile(tiny: TinyModel) -> ArchitectureProfile:
    """The profile of the scoring model, as a plan has it."""
    return profile_for(installed().profile(tiny.config, installed_catalog()), "score")


def score_plan(folder: Path, profile: ArchitectureProfile, *, dtype: Any = "float32", seed: int = 0, **load: Any) -> Plan:
    """Of a plan, what loading goes by."""
    model = ModelReference(name="tiny", path=str(folder), kind="folder", gguf_file=load.pop("gguf_file", None))
    return Plan(
        model=model,
        profile=profile,
        steps=(),
        task="score",
        precision=precision(dtype),
        config=freeze({"train": {"seed": seed}}),
        load_options=freeze({"attn_implementation": "eager", **load}),
    )


@pytest.fixture
def load() -> Load:
    """`load(tiny, folder=None, notices=[], **plan)`: a scoring model as a run loads it, in evaluation mode."""

    def loaded(tiny: TinyModel, folder: Path | None = None, notices: list[str] | None = None, **options: Any) -> Any:
        told = notices if notices is not None else []
        model: Any = load_model(score_plan(folder or tiny.folder, score_profile(tiny), **options), told.append).eval()
        pad_with(model, tiny_tokenizer())
        return model

    return loaded


@pytest.fixture
def attach(load: Load) -> Callable[..., tuple[Any, Any, Any]]:
    """`attach(tiny, "lora", {"rank": 4}) -> (the adapter, its options, the model with it on, in evaluation mode)`."""

    def attached(tiny: TinyModel, name: str, options: Mapping[str, Any] = FrozenDict(), **plan: Any) -> tuple[Any, Any, Any]:
        adapter: Any = installed_catalog().method("adapter", name)
        config = parse_options(adapter.config, freeze({**adapter.example, **options}), where="adapter")
        profile = score_profile(tiny)
        support = adapter.supports(profile, installed().environment(), config)
        assert support, support.reason
        model = load(tiny, **plan)
        torch.manual_seed(0)
        dtype = plan.get("dtype", "float32")
        model = call(adapter.attach, model, profile, config, context=build_context(dtype)).eval()
        return adapter, config, model

    return attached


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The prompt says which of two answers is the better one; both are of one length."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        answers, turned = ("yes", "no."), number % 2
        prompt = f"{('yes', 'no.')[turned]} to {draw.choice(WORDS)}"
        rows.append({"prompt": prompt, "chosen": answers[turned], "rejected": answers[1 - turned]})
    return rows


@pytest.fixture
def rm_config(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`rm_config(folder, rows, **sections)`: the configuration of a small reward model run into tmp_path/run."""

    def make(folder: Path, rows: list[dict[str, Any]] | None = None, **sections: Any) -> dict[str, Any]:
        data = {
            "train": [write_rows(tmp_path / "rows.jsonl", pairs(24) if rows is None else rows)],
            "max_length": 128,
            "eval": 0.25,
        }
        return {
            "model": str(folder),
            "data": data | sections.pop("data", {}),
            "stage": "rm",
            "adapter": {"use": "lora", "rank": 4},
            "optimizer": {"use": "adamw", "lr": 0.01},
            "precision": "fp32",
            "train": {"batch_tokens": 512, "max_steps": 3} | sections.pop("train", {}),
            "output": str(tmp_path / "run"),
            **sections,
        }

    return make
