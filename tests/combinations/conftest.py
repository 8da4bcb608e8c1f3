"""Every combination on a tiny model: the matrix, and three steps of one of its cells with every parameter watched."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from luthier.core.catalog import Catalog, Offer
from luthier.core.environment import Environment
from luthier.core.resolve.matrix import NO_QUANTISATION, Cell, Matrix, combinations

SMALL: dict[str, dict[str, Any]] = {"llama": {}, "mixtral": {"num_local_experts": 4}}
ROWS = [
    {"instruction": f"Name the number after {index}.", "output": f"The number after {index} is {index + 1}."}
    for index in range(12)
]


@dataclasses.dataclass
class Watched:
    """What a run did: names that were trainable when training began, their number of parameters, and names that changed.

    `buffers` are the buffers that changed; a base that is frozen has none of its own names among the trainable ones.
    """

    declared: set[str] = dataclasses.field(default_factory=set)
    numbers: int = 0
    changed: set[str] = dataclasses.field(default_factory=set)
    buffers: set[str] = dataclasses.field(default_factory=set)


def watching(catalog: Catalog, watched: Watched) -> Catalog:
    """The catalog with its stages wrapped: parameters are compared before and after."""

    def wrap(offer: Offer[Any]) -> Offer[Any]:
        def run(runtime: Any, config: Any) -> Mapping[str, float]:
            import torch

            before = {name: parameter.detach().clone() for name, parameter in runtime.model.named_parameters()}
            buffers = {name: buffer.clone() for name, buffer in runtime.model.named_buffers()}
            trained = {name: one.numel() for name, one in runtime.model.named_parameters() if one.requires_grad}
            watched.declared, watched.numbers = set(trained), sum(trained.values())
            metrics: Mapping[str, float] = offer.value.run(runtime, config)
            after = dict(runtime.model.named_parameters())
            assert after.keys() == before.keys()
            watched.changed = {name for name, old in before.items() if not torch.equal(old, after[name].detach())}
            watched.buffers = {name for name, one in runtime.model.named_buffers() if not torch.equal(one, buffers[name])}
            return metrics

        return Offer(value=dataclasses.replace(offer.value, run=run), provider=offer.provider)

    stages = {name: wrap(offer) for name, offer in catalog.slot("stage").items()}
    return dataclasses.replace(catalog, methods={**catalog.methods, "stage": stages})


def moving(catalog: Catalog, watched: Watched) -> Catalog:
    """As `watching`, for stages that put more on the model (a reference, a value head): what it came with is compared."""

    def wrap(offer: Offer[Any]) -> Offer[Any]:
        def run(runtime: Any, config: Any) -> Mapping[str, float]:
            import torch

            before = {name: parameter.detach().clone() for name, parameter in runtime.model.named_parameters()}
            watched.declared = {name for name, one in runtime.model.named_parameters() if one.requires_grad}
            metrics: Mapping[str, float] = offer.value.run(runtime, config)
            after = dict(runtime.model.named_parameters())
            watched.changed = {name for name, old in before.items() if not torch.equal(old, after[name].detach())}
            return metrics

        return Offer(value=dataclasses.replace(offer.value, run=run), provider=offer.provider)

    stages = {name: wrap(offer) for name, offer in catalog.slot("stage").items()}
    return dataclasses.replace(catalog, methods={**catalog.methods, "stage": stages})


@cache
def installed() -> tuple[Catalog, Environment]:
    from luthier.registry.catalog import discover
    from luthier.registry.environment import read_environment

    return discover(), read_environment(probe=False)


@cache
def matrix_of(folder: Path) -> Matrix:
    """The matrix of a model folder on this machine."""
    import luthier.api
    from luthier.core.config import ModelConfig

    catalog, environment = installed()
    reference, profile = luthier.api.read_model(ModelConfig(name=str(folder)), catalog)
    return combinations(model=reference, profile=profile, environment=environment, catalog=catalog)


def cell_config(cell: Cell, folder: Path, work: Path, precision: str = "fp32") -> dict[str, Any]:
    """The configuration of three steps of a combination, as a user would write it."""
    catalog, _ = installed()
    data = work / "rows.jsonl"
    if not data.exists():
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")

    def slot(where: str, name: str) -> dict[str, Any]:
        return {"use": name, **catalog.method(where, name).example}

    return {
        "model": str(folder),
        "data": {"train": [str(data)], "max_length": 128},
        "stage": "sft",
        "adapter": slot("adapter", cell.adapter),
        "optimizer": slot("optimizer", cell.optimizer),
        "patches": [] if cell.quantisation == NO_QUANTISATION else [slot("patches", cell.quantisation)],
        "precision": precision,
        "train": {"max_steps": 3, "batch_tokens": 256},
        "output": str(work / "-".join(["run", cell.adapter, cell.quantisation, cell.optimizer, precision])),
    }


@pytest.fixture(scope="session")
def tiny_models(tiny_folder: Callable[..., Path]) -> dict[str, Path]:
    """A tiny llama and a tiny mixtral, the same folders for the whole session."""
    return {model_type: tiny_folder(model_type, **small) for model_type, small in SMALL.items()}
