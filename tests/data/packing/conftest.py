"""Documents, models and a run for the tests of packing: no file is read, and the methods are the built-in ones."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from luthier import testing
from luthier.core import engine
from luthier.core.calling import call
from luthier.core.config.schema import Choice, DataConfig, ModelConfig, RunConfig, TrainConfig
from luthier.core.data.examples import Example
from luthier.core.extensions import RunEvent
from luthier.core.frozen import freeze
from luthier.core.meter import MemoryMeter
from luthier.core.output import OutputFolder
from luthier.core.plan import ModelReference, Plan
from luthier.core.profile import ArchitectureProfile
from luthier.core.resolve import resolve
from luthier.core.runtime import Runtime
from luthier.core.testing import tiny_model, tiny_tokenizer
from luthier.core.testing.surroundings import installed_catalog, this_machine

LENGTHS = (13, 40, 9, 17, 3, 31, 12, 25, 7, 20, 14, 6, 1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For models this small a second thread only waits, long when other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def choice(value: str | dict[str, Any]) -> Choice:
    """A slot's value: a name, or {"use": name, "options": {...}}."""
    return Choice(use=value) if isinstance(value, str) else Choice(use=value["use"], options=freeze(value["options"]))


class Documents:
    """Random token rows of the given lengths, the first third of each read and not learned."""

    def __init__(self, lengths: Sequence[int] = LENGTHS, seed: int = 7) -> None:
        random = np.random.RandomState(seed)
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.ids = [random.randint(0, 256, size=length).astype(np.int64) for length in lengths]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> int:
        return len(self)

    def __getitem__(self, index: int) -> Example:
        labels = self.ids[index].copy()
        labels[: len(labels) // 3] = -100
        return {"input_ids": self.ids[index], "labels": labels}


@dataclass
class Made:
    """A run up to its stage: `runtime.model` has the adapter on it, `said` are notices and warnings."""

    runtime: Runtime
    events: list[RunEvent]

    @property
    def said(self) -> list[str]:
        return [event.message for event in self.events if event.kind in ("notice", "warning")]


@pytest.fixture
def documents() -> type[Documents]:
    return Documents


@pytest.fixture
def profile() -> Callable[..., ArchitectureProfile]:
    """`profile("llama")`: of the kit's tiny model of this type."""
    return lambda kind, **changes: testing.profile(tiny_model(kind, changes).config, installed_catalog())


@pytest.fixture
def plan(profile: Callable[..., ArchitectureProfile]) -> Callable[..., Plan]:
    """`plan("llama", packing=True, adapter="lora", train={...})` by the built-in methods; raises PlanRefused."""

    def make(
        kind: str = "llama",
        *,
        packing: bool = True,
        of: ArchitectureProfile | None = None,
        train: dict[str, Any] | None = None,
        output: str = "run",
        **slots: Any,
    ) -> Plan:
        chosen = {
            name: choice(value)
            for name, value in {"adapter": "full", "optimizer": "adamw", "attention": "sdpa", **slots}.items()
            if name != "patches"
        }
        config = RunConfig(
            model=ModelConfig(name=kind),
            data=DataConfig(train=(), packing=packing),
            patches=tuple(map(choice, slots.get("patches", ()))),
            precision="fp32",
            train=TrainConfig(**{"batch_tokens": 64, **(train or {})}),
            output=output,
            **chosen,
        )
        folder = str(tiny_model(kind).folder) if of is None else ""
        reference = ModelReference(name=kind, path=folder, kind="folder")
        return resolve(
            config, model=reference, profile=of or profile(kind), environment=this_machine(), catalog=installed_catalog()
        )

    return make


@pytest.fixture
def make_run(plan: Callable[..., Plan], tmp_path: Path) -> Iterator[Callable[..., Made]]:
    """`make_run("llama", packing=True, adapter="lora", train={"accumulation": 8}) -> Made`, with the model attached."""
    from luthier.core.config import parse_config
    from luthier.core.frozen import thaw

    claimed: list[OutputFolder] = []
    built: list[Runtime] = []

    def make(kind: str = "llama", *, rows: Any = None, held_out: Any = (), **options: Any) -> Made:
        folder = tmp_path / f"run-{len(claimed)}"
        planned = plan(kind, output=str(folder), **options)
        output = OutputFolder.claim(folder)
        claimed.append(output)
        events: list[RunEvent] = []
        runtime = Runtime(
            plan=planned,
            config=parse_config(thaw(planned.config)),
            catalog=installed_catalog(),
            output=output,
            emit_to=events.append,
            meter=MemoryMeter("cpu"),
            stop=threading.Event(),
            tokenizer=copy.deepcopy(tiny_tokenizer()),
            original_tokenizer=tiny_tokenizer(),
            data=SimpleNamespace(train=rows or Documents(), eval=Documents(held_out, seed=8)),  # type: ignore[arg-type]
        )
        for step in planned.steps_in("patches"):
            patch, chosen = runtime.method(step)
            if patch.edit_tokenizer is not None:  # type: ignore[attr-defined]
                call(patch.edit_tokenizer, runtime.tokenizer, planned.profile, chosen, notice=runtime.notice)  # type: ignore[attr-defined]
        engine._build(runtime)
        built.append(runtime)
        return Made(runtime, events)

    yield make
    for runtime in built:
        runtime.meter.stop()
        engine._undo(runtime)
    for output in claimed:
        output.release()
