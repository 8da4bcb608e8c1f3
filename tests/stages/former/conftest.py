"""Chains of short runs through the front door, and what the model of a run computes, asked of PEFT and transformers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.core.caching import CACHE_VARIABLE, cache_folder
from luthier.core.catalog import Catalog, Offer
from tests.stages.running import write_rows

ROWS = [
    {"instruction": f"Say the word number {index}.", "output": f"Here it is: word{index} and word{index + 1}."}
    for index in range(8)
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Merged models of one test are none of another's; all else in the cache is shared."""
    folder = tmp_path_factory.mktemp("cache")
    for name in ("models", "probe", "data"):
        (cache_folder() / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((cache_folder() / name).resolve())
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@dataclasses.dataclass
class Chain:
    """Runs in one folder, named by their output. `first` is a run of this kind, on `base`, that was made already."""

    folder: Path
    base: Path
    first: Path | None = None

    def sft(self) -> Path:
        """A copy of the first run: three steps of LoRA, a checkpoint after each of the last two."""
        assert self.first is not None
        return Path(shutil.copytree(self.first, self.folder / "sft"))

    def config(self, output: str, model: Any = None, **sections: Any) -> dict[str, Any]:
        """Three steps of `sft` at a high rate, in float32."""
        return {
            "model": str(self.base) if model is None else model,
            "data": {"train": [write_rows(self.folder / "rows.jsonl", ROWS)], "max_length": 200},
            "stage": "sft",
            "adapter": {"use": "lora", "rank": 4},
            "patches": [],
            "optimizer": {"use": "adamw", "lr": 2e-2, "schedule": "constant", "warmup": 0},
            "precision": "fp32",
            "train": {"max_steps": 3, "batch_tokens": 512},
            "output": str(self.folder / output),
        } | sections

    def plan(self, output: str, model: Any = None, **sections: Any) -> Any:
        import luthier

        return luthier.plan(luthier.load_config(self.config(output, model, **sections)))

    def train(self, output: str, model: Any = None, **sections: Any) -> Path:
        import luthier

        luthier.train(self.plan(output, model, **sections))
        return self.folder / output

    def watch(self, plan: Any, ids: Any) -> Watched:
        """Carry a plan out, and note what the model and its reference policy compute as training begins and ends."""
        from luthier.core.engine import execute
        from luthier.registry.catalog import discover
        from luthier.registry.environment import read_environment

        watched = Watched()
        execute(plan, watching(discover(), watched, ids), environment=read_environment(probe=False), observers=(watched,))
        return watched


@dataclasses.dataclass
class Watched:
    """Logits of the model before and after training, of its reference policy after it; what observers were told."""

    began: Any = None
    ended: Any = None
    reference: Any = None
    told: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, event: Any) -> None:
        self.told.append(event.message)


def watching(catalog: Catalog, watched: Watched, ids: Any) -> Catalog:
    def wrap(offer: Offer[Any]) -> Offer[Any]:
        def run(runtime: Any, config: Any) -> Mapping[str, float]:
            import torch

            from luthier.core.references import ReferencePolicy

            how = "disabled" if "reference.by_disabling" in runtime.plan.traits else "copied"
            how = how if "adapter.detachable" in runtime.plan.traits else "model"
            watched.began = logits_of(runtime.model, ids)
            reference = ReferencePolicy(runtime.model, how)  # type: ignore[arg-type]
            metrics: Mapping[str, float] = offer.value.run(runtime, config)
            watched.ended = logits_of(runtime.model, ids)
            with torch.no_grad(), reference() as frozen:
                watched.reference = logits_of(frozen, ids)
            return metrics

        return Offer(value=dataclasses.replace(offer.value, run=run), provider=offer.provider)

    stages = {name: wrap(offer) for name, offer in catalog.slot("stage").items()}
    return dataclasses.replace(catalog, methods={**catalog.methods, "stage": stages})


def logits_of(model: Any, ids: Any) -> Any:
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.float()
    model.train(training)
    return logits


@pytest.fixture(scope="session")
def first_run(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = Chain(tmp_path_factory.mktemp("first"), tiny_folder("llama"))
    chain.train("run", train={"max_steps": 3, "batch_tokens": 512, "save_every": 1})
    return chain


@pytest.fixture
def chain(first_run: Chain, tmp_path: Path) -> Chain:
    """Runs beside each other on one tiny Llama, which no test may change."""
    return Chain(tmp_path, first_run.base, first_run.folder / "run")


@pytest.fixture
def loaded() -> Callable[..., Any]:
    """`loaded(base, run) -> logits` of the base with the run's adapter, or of the run's whole model, without Luthier."""

    def load(base: Path, run: Path, ids: Any) -> Any:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if not (run / "adapter_config.json").is_file():
            return logits_of(AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32), ids)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return logits_of(PeftModel.from_pretrained(model, str(run)), ids)

    return load


@pytest.fixture
def ids() -> Any:
    """Token ids of no row, of shape (2, 24)."""
    import torch

    return torch.randint(3, 250, (2, 24), generator=torch.Generator().manual_seed(5))
