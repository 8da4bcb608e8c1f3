"""Fixtures of the data tests: the built-in formats as a catalog offers them, files of rows, and a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.core.catalog import Offer, Provider
from luthier.core.config.schema import DataConfig, ModelConfig, RunConfig, SourceConfig, TrainConfig
from luthier.core.extensions import DataFormat
from luthier.plugins import alpaca, messages


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test: what another one tokenised must not hide that this one cannot."""
    folder = tmp_path / "luthier-cache"
    monkeypatch.setenv("LUTHIER_CACHE", str(folder))
    return folder


@pytest.fixture
def formats() -> dict[str, Offer[DataFormat]]:
    offered = [*alpaca.luthier_data_formats(), *messages.luthier_data_formats()]
    return {item.name: Offer(value=item, provider=Provider(plugin=item.name)) for item in offered}


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """`jsonl(rows, name="rows.jsonl")` writes one row a line."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def config() -> Callable[..., RunConfig]:
    """`config(path, seed=0, **data)`: a configuration that trains on one file."""

    def make(path: Path | str, *, seed: int = 0, source: Mapping[str, Any] | None = None, **data: Any) -> RunConfig:
        train = (SourceConfig(path=str(path), **source or {}),)
        return RunConfig(model=ModelConfig(name="tiny"), data=DataConfig(train=train, **data), train=TrainConfig(seed=seed))

    return make


@pytest.fixture
def chat() -> Callable[..., dict[str, Any]]:
    """`chat("hi", "hello", "more?", "no")`: a row of messages, user and assistant in turn."""

    def make(*texts: str, system: str = "") -> dict[str, Any]:
        turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
        return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}

    return make
