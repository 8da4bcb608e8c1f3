"""A run small enough for a test: a tiny Llama, hand-made methods, rows of very unequal length, no front door."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.catalog import Catalog, Offer, Provider
from luthier.core.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from luthier.core.contracts import Adapter, OptimizerMethod
from luthier.core.extensions import RunEvent
from luthier.core.frozen import FrozenDict, thaw
from luthier.core.meter import MemoryMeter
from luthier.core.output import OutputFolder
from luthier.core.plan import MemoryForecast, ModelReference, Plan, Precision, Step
from luthier.core.profile import ArchitectureProfile
from luthier.core.runtime import Runtime
from luthier.core.schedule import OptimizerOptions

LENGTHS = (5, 40, 9, 17, 3, 31, 12, 25, 7, 20, 14, 6)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """For models this small a second thread only waits, long when other tests run beside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_adamw(model: Any, options: OptimizerOptions) -> Any:
    import torch

    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=options.lr), ()


def whole(model: Any, profile: Any, options: Any) -> Any:
    return model


FULL = Adapter(name="whole", summary="Every parameter trains.", attach=whole)
ADAMW = OptimizerMethod(name="adam", summary="AdamW.", config=OptimizerOptions, build=build_adamw)


def tiny_llama(seed: int = 0, *, dropout: float = 0.0, lora: float | None = None, dtype: Any = None) -> Any:
    """Two layers of 32; `dropout` in attention, `lora` the dropout of an adapter of rank 4."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).to(dtype or torch.float32)
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, lora_dropout=lora, target_modules=["q_proj", "down_proj"]))


class Rows:
    """Random rows of the given lengths, the first third of each a prompt that is not learned."""

    def __init__(self, lengths: tuple[int, ...] = LENGTHS) -> None:
        import numpy as np

        random = np.random.RandomState(7)
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self._ids = [random.randint(3, 64, size=length).astype(np.int64) for length in lengths]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self._ids[index]
        labels = ids.copy()
        labels[: len(ids) // 3] = -100
        return {"input_ids": ids, "labels": labels}


@dataclass
class Run:
    """A runtime with its trainer's parts at hand; `events` is what observers heard."""

    runtime: Runtime
    events: list[RunEvent]

    def trainer(self, **kwargs: Any) -> Any:
        from luthier.core.data import BatchSchedule, collate
        from luthier.core.trainer import RunTrainer

        train = self.runtime.config.train
        rows: Any = self.runtime.data
        schedule = BatchSchedule(
            rows.train.lengths,
            batch_tokens=train.batch_tokens,
            accumulation=train.accumulation,
            seed=train.seed,
            epochs=train.epochs,
            max_steps=train.max_steps,
        )
        held_out = (
            BatchSchedule(rows.eval.lengths, batch_tokens=train.batch_tokens, accumulation=1, seed=0)
            if len(rows.eval)
            else None
        )
        collator = partial(collate, pad_token_id=0)
        parts = {"schedule": schedule, "data_collator": collator, "eval_schedule": held_out} | kwargs
        return RunTrainer(runtime=self.runtime, **parts)

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [thaw(event.values) for event in self.events if event.kind == kind]


RunMaker = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> Any:
    """`make_run(model, folder="run", resume=False, optimizer={...}, **train) -> Run`; the locks are given up at the end."""
    claimed: list[OutputFolder] = []

    def make(
        model: Any,
        *,
        folder: str = "run",
        resume: bool = False,
        rows: Rows | None = None,
        held_out: tuple[int, ...] = (),
        adapter: Any = FULL,
        optimizer: Any = ADAMW,
        options: dict[str, Any] | None = None,
        precision: tuple[Any, Any] = ("float32", "float32"),
        **train: Any,
    ) -> Run:
        settings: dict[str, Any] = {"batch_tokens": 64, "accumulation": 2, "max_steps": 10} | train
        config = RunConfig(
            model=ModelConfig(name="tiny"), data=DataConfig(train=()), train=TrainConfig(**settings), output=folder
        )
        provider = Provider(plugin="test")
        catalog = Catalog(
            methods={
                "adapter": {adapter.name: Offer(value=adapter, provider=provider)},
                "optimizer": {optimizer.name: Offer(value=optimizer, provider=provider)},
            }
        )
        plan = Plan(
            model=ModelReference(name="tiny", path="tiny", kind="folder"),
            profile=ArchitectureProfile(
                model_type="llama",
                architecture="LlamaForCausalLM",
                decoder="model.layers",
                layers=2,
                layer_classes=(),
                hidden_size=32,
                vocab_size=64,
            ),
            steps=(
                Step(slot="adapter", method=adapter.name, provider="test"),
                Step(
                    slot="optimizer",
                    method=optimizer.name,
                    provider="test",
                    config=FrozenDict({"lr": 1e-2, **(options or {})} if optimizer is ADAMW else (options or {})),
                ),
            ),
            precision=Precision(name="fp32", weights=precision[0], compute=precision[1], why="test"),
            config=FrozenDict(),
            memory=MemoryForecast(peak=3 * 1024**3),
        )
        output = OutputFolder.claim(tmp_path / folder, resume=resume)
        claimed.append(output)
        events: list[RunEvent] = []
        runtime = Runtime(
            plan=plan,
            config=config,
            catalog=catalog,
            output=output,
            emit_to=events.append,
            meter=MemoryMeter("cpu"),
            resume_from=output.latest_checkpoint if resume else None,
            stop=threading.Event(),
            model=model,
            data=SimpleNamespace(train=rows or Rows(), eval=Rows(held_out)),  # type: ignore[arg-type]
        )
        return Run(runtime, events)

    yield make
    for output in claimed:
        output.release()


@pytest.fixture
def llama() -> Any:
    return tiny_llama


@pytest.fixture
def rows() -> Any:
    return Rows
