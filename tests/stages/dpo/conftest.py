"""Small runs of preference stages: through the real plan and engine, or stopped where the stage would begin."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.engine import execute
from luthier.core.extensions import RunEvent
from luthier.core.frozen import thaw
from luthier.core.runtime import Runtime
from luthier.core.testing.contract import with_methods
from luthier.core.testing.models import tiny_model, token_batch
from luthier.core.testing.surroundings import installed, installed_catalog, this_machine

WORDS = ("ash", "birch", "cedar", "elm", "fir", "larch", "maple", "oak", "pine", "rowan")
Row = Mapping[str, Any]


def preferences(count: int, seed: int = 0) -> list[Row]:
    """Prompts that say which of two short answers is the better one; answers of very unequal length."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        word, turned = draw.choice(WORDS), number % 2
        answers = (" ".join(["yes"] * draw.randint(1, 3)), " ".join(["no"] * draw.randint(1, 6)))
        prompt = f"{'no' if turned else 'yes'} to {word}"
        rows.append({"prompt": prompt, "chosen": answers[turned], "rejected": answers[1 - turned]})
    return rows


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
    """Runs in one temporary folder; sections of the configuration by keyword, each over the defaults."""

    folder: Path
    stage: str = "dpo"

    def config(self, rows: Iterable[Row] = (), output: str = "run", **sections: Any) -> dict[str, Any]:
        rows = list(rows) or preferences(16)
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
            mergeable = isinstance(value, Mapping) and isinstance(standard[name], Mapping) and "use" not in value
            standard[name] = {**standard[name], **value} if mergeable else value
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
        """The runtime as the stage gets it: model loaded and adapted, rows tokenised."""
        config = self.config(**sections)
        found: list[Runtime] = []

        def hold(runtime: Runtime, options: Any) -> dict[str, float]:
            found.append(runtime)
            runtime.undo.clear()  # patches stay on
            return {}

        stage = dataclasses.replace(installed_catalog().method("stage", self.stage), run=hold)
        catalog, machine = with_methods(installed_catalog(), stage), this_machine()
        plan = installed().plan(config, catalog, machine)
        execute(plan, catalog, environment=machine, overwrite=True)
        return found[0]


@pytest.fixture(scope="session")
def make_bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`make_bench()`: one that several tests can share."""
    return lambda: Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def rows() -> Any:
    """`rows(count, seed)`: preference rows."""
    return preferences


def shake_trained(model: Any, by: float = 0.05, seed: int = 3) -> None:
    """Move whatever trains, the same way each time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=by)


def logits_of(model: Any) -> torch.Tensor:
    """Of a fixed batch, in the mode that the model is in."""
    batch = token_batch(rows=3)
    with torch.no_grad():
        found: torch.Tensor = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits.clone()
    return found


@pytest.fixture
def shake() -> Any:
    return shake_trained


@pytest.fixture
def logits() -> Any:
    return logits_of
