"""Small runs of a stage: through the real plan and engine, stopped and resumed, or held where the stage would begin.

With the rows that preference stages learn from, and what tests look at afterwards: events, weights.
"""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.catalog import Catalog
from luthier.core.engine import execute
from luthier.core.errors import Interrupted
from luthier.core.extensions import RunEvent
from luthier.core.frozen import thaw
from luthier.core.plan import Plan
from luthier.core.runtime import Runtime
from luthier.core.testing.contract import with_methods
from luthier.core.testing.models import tiny_model
from luthier.core.testing.surroundings import installed, installed_catalog, this_machine

Row = Mapping[str, Any]
WORDS = ("ash", "birch", "cedar", "elm", "fir", "larch", "maple", "oak", "pine", "rowan", "willow", "yew")


# ---- rows


def preferences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts that say which of two short answers is the better one; answers of very unequal length."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        word, turned = draw.choice(WORDS[:10]), number % 2
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


def write_rows(path: Path, rows: Iterable[Row]) -> str:
    """The path, of a JSONL file with these rows."""
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# ---- runs


@dataclasses.dataclass
class Heard:
    """What the observers of a run were told."""

    events: list[RunEvent]

    def told(self, kind: str) -> list[dict[str, Any]]:
        """The values of its events of this kind."""
        return [thaw(event.values) for event in self.events if event.kind == kind]

    def said(self, kind: str) -> list[str]:
        """The messages of its events of this kind."""
        return [event.message for event in self.events if event.kind == kind]


@dataclasses.dataclass
class Ran(Heard):
    """A finished run: what it told, its plan, its results, and its folder."""

    plan: Plan
    results: dict[str, Any]
    folder: Path

    @property
    def losses(self) -> list[float]:
        return [step["loss"] for step in self.told("step")]


def carry_out(
    config: Mapping[str, Any],
    *,
    catalog: Catalog | None = None,
    observers: Sequence[Callable[[RunEvent], None]] = (),
    resume: bool = False,
    stop: threading.Event | None = None,
) -> Ran:
    """Plan it, and do what the plan says; with the installed methods, or those of `catalog`."""
    catalog, machine = catalog or installed_catalog(), this_machine()
    plan = installed().plan(config, catalog, machine)
    events: list[RunEvent] = []
    observers = (events.append, *observers)
    results = execute(plan, catalog, environment=machine, observers=observers, resume=resume, stop=stop)
    return Ran(events, plan, results, Path(config["output"]))


def with_body(config: Mapping[str, Any], body: Callable[[Runtime, Any], Mapping[str, float]]) -> Catalog:
    """The installed methods, with `body` in place of what the configuration's stage does."""
    chosen = config["stage"]
    stage: Any = installed_catalog().method("stage", chosen if isinstance(chosen, str) else chosen["use"])
    return with_methods(installed_catalog(), dataclasses.replace(stage, run=body))


def held(config: Mapping[str, Any]) -> Runtime:
    """The runtime as the stage gets it: model loaded and adapted, patches on, rows tokenised."""
    found: list[Runtime] = []

    def hold(runtime: Runtime, options: Any) -> dict[str, float]:
        found.append(runtime)
        runtime.undo.clear()  # patches stay on
        return {}

    catalog, machine = with_body(config, hold), this_machine()
    execute(installed().plan(config, catalog, machine), catalog, environment=machine, overwrite=True)
    found[0].catalog = installed_catalog()
    return found[0]


def stopping(when: int | Callable[[RunEvent], bool]) -> dict[str, Any]:
    """Options of a run that is stopped when it tells of this step, or of such an event: `bench.run(**stopping(3))`."""
    stop = threading.Event()

    def interrupt(event: RunEvent) -> None:
        if when(event) if callable(when) else event.kind == "step" and event.values["step"] == when:
            stop.set()

    return {"stop": stop, "observers": (interrupt,)}


@dataclasses.dataclass
class Bench:
    """Runs of one stage in one folder; sections of the configuration by keyword, each over the defaults."""

    folder: Path
    stage: str
    rows: Sequence[Row] = dataclasses.field(default_factory=lambda: preferences(16))

    def config(self, rows: Iterable[Row] = (), output: str = "run", **sections: Any) -> dict[str, Any]:
        rows = list(rows) or self.rows
        standard: dict[str, Any] = {
            "model": str(tiny_model("llama").folder),
            "data": {"train": [write_rows(self.folder / f"rows-{len(rows)}.jsonl", rows)], "max_length": 128},
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

    def run(self, *, observers: Any = (), resume: bool = False, stop: Any = None, **sections: Any) -> Ran:
        return carry_out(self.config(**sections), observers=observers, resume=resume, stop=stop)

    def attached(self, **sections: Any) -> Runtime:
        """The runtime as the stage gets it."""
        return held(self.config(**sections))


# ---- what is looked at


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those that a run left, or a checkpoint has."""
    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


def different_weights(one: Path, other: Path) -> list[str]:
    """Names of the weights that are not the same bit for bit, or that one of two runs alone has."""
    first, second = weights(one), weights(other)
    common = first.keys() & second.keys()
    return sorted({*(first.keys() ^ second.keys()), *(name for name in common if not first[name].equal(second[name]))})


def goes_on_bit_for_bit(bench: Bench, *, half: int, **sections: Any) -> None:
    """A run that was stopped after `half` of its steps ends, when resumed, as one does that never stopped."""
    straight = bench.run(output="straight", **sections)
    with pytest.raises(Interrupted):
        bench.run(**stopping(half - 1), **sections)  # told of while the next step is under way, which is done first
    resumed = bench.run(resume=True, **sections)
    assert resumed.losses == straight.losses[half:]
    assert not different_weights(straight.folder, resumed.folder)
    for name in ("eval_loss", "eval_margin", "train_loss", "tokens", "trained_tokens"):
        assert resumed.results[name] == straight.results[name], name


def shake(model: Any, by: float = 0.05, seed: int = 3) -> None:
    """Move whatever trains, the same way each time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=by)
