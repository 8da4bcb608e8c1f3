"""Small runs of the stages that learn from pairs without a reference, and of the one that learns from rated answers."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.engine import execute
from luthier.core.extensions import RunEvent
from luthier.core.frozen import thaw
from luthier.core.runtime import Runtime
from luthier.core.testing.contract import with_methods
from luthier.core.testing.models import tiny_model
from luthier.core.testing.surroundings import installed, installed_catalog, this_machine

WORDS = ("ash", "birch", "cedar", "elm", "fir", "larch", "maple", "oak", "pine", "rowan")
Rows = Sequence[Mapping[str, Any]]


def preferences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts that say which of two short answers is the better one; answers of very unequal length."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        word, turned = draw.choice(WORDS), number % 2
        answers = (" ".join(["yes"] * draw.randint(1, 3)), " ".join(["no"] * draw.randint(1, 6)))
        prompt = f"{'no' if turned else 'yes'} to {word}"
        rows.append({"prompt": prompt, "chosen": answers[turned], "rejected": answers[1 - turned]})
    return rows


def rated(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The answers of `preferences` one by one: good where they were chosen."""
    return [
        {"prompt": row["prompt"], "completion": row[which], "label": which == "chosen"}
        for row in preferences(count, seed)
        for which in ("chosen", "rejected")
    ]


@dataclasses.dataclass
class Ran:
    """A finished run: its plan, its results, what observers heard, and its folder."""

    plan: Any
    results: dict[str, Any]
    events: list[RunEvent]
    folder: Path

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [thaw(event.values) for event in self.events if event.kind == kind]

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.told("step")]


@dataclasses.dataclass
class Bench:
    """Runs of one stage in one folder; sections of the configuration by keyword, each over the defaults."""

    folder: Path
    stage: str

    def config(self, rows: Rows = (), output: str = "run", **sections: Any) -> dict[str, Any]:
        rows = rows or (rated if self.stage == "kto" else preferences)(16)
        path = self.folder / f"rows-{len(rows)}.jsonl"
        path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
        standard: dict[str, Any] = {
            "model": str(tiny_model("llama").folder),
            "data": {"train": [str(path)], "max_length": 128},
            "stage": {"use": self.stage},
            "adapter": {"use": "lora", "rank": 4},
            "optimizer": {"use": "adamw", "lr": 0.01, "schedule": "constant", "warmup": 0},
            "patches": [],
            "precision": "fp32",
            "train": {"batch_tokens": 256, "seed": 1},
            "output": str(self.folder / output),
        }
        for name, value in sections.items():
            standard[name] = {**standard[name], **value} if name in ("data", "train") else value
        return standard

    def run(self, *, resume: bool = False, stop: Any = None, observer: Any = None, **sections: Any) -> Ran:
        config = self.config(**sections)
        catalog, machine = installed_catalog(), this_machine()
        events: list[RunEvent] = []
        observers = (events.append, *([observer] if observer else []))
        plan = installed().plan(config, catalog, machine)
        results = execute(plan, catalog, environment=machine, observers=observers, resume=resume, stop=stop)
        return Ran(plan, results, events, Path(config["output"]))

    def attached(self, **sections: Any) -> Runtime:
        """The runtime as the stage gets it: every parameter of the model trains, rows are tokenised."""
        found: list[Runtime] = []

        def hold(runtime: Runtime, options: Any) -> dict[str, float]:
            found.append(runtime)
            return {}

        stage = dataclasses.replace(installed_catalog().method("stage", self.stage), run=hold)  # type: ignore[type-var]
        catalog, machine = with_methods(installed_catalog(), stage), this_machine()
        plan = installed().plan(self.config(adapter="full", **sections), catalog, machine)
        execute(plan, catalog, environment=machine, overwrite=True)
        found[0].catalog = installed_catalog()
        return found[0]


@pytest.fixture
def bench_of(tmp_path: Path) -> Any:
    """`bench_of("orpo")`: runs of that stage in the test's folder."""
    return lambda stage: Bench(tmp_path, stage)


@pytest.fixture
def pairs() -> Any:
    """`pairs(count, seed)`: preference rows."""
    return preferences


@pytest.fixture
def ratings() -> Any:
    """`ratings(pairs, seed)`: two rated answers for each."""
    return rated


@pytest.fixture
def shake() -> Any:
    """`shake(model)`: move whatever trains, the same way each time."""

    def move(model: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)

    return move
