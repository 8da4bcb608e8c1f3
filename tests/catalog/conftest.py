"""`install`: a distribution with plugin modules in a folder of its own, found the way that real ones are found."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

HEADER = """
from dataclasses import dataclass
from luthier.core.contracts import *
from luthier.core.contracts import Adapter, AttentionKernel, ModelPatch, OptimizerMethod, TrainingStage
from luthier.core.extensions import ArchitectureFamily, Command, DataFormat, Preset
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.traits import any_of

def adapter(name, **more):
    return Adapter(**{"name": name, "summary": "A test.", "attach": lambda model, profile, config: model, **more})

def optimizer(name, **more):
    return OptimizerMethod(**{"name": name, "summary": "A test.", "build": lambda model, config: None, **more})

def data_format(name):
    return DataFormat(
        name=name, summary="A test.", kind="text", columns="x", detect=lambda row: False, convert=lambda row: row
    )

def command(name):
    return Command(name=name, summary="A test.", run=lambda arguments: 0)

def family(name, *types):
    return ArchitectureFamily(name=name, model_types=types, roles={"attn.o": "net.*.out"})
"""

Install = Callable[..., list[EntryPoint]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install("luthier-a", "1.0", a_plugin="...code...")` returns every entry point that was installed so far.

    Each keyword is a module, and an entry point of the same name; `points` gives entry points of other names.
    """
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    before = set(sys.modules)

    def install(
        distribution: str, version: str = "1.0", *, points: dict[str, str] | None = None, **modules: str
    ) -> list[EntryPoint]:
        for name, code in modules.items():
            (site / f"{name}.py").write_text(HEADER + textwrap.dedent(code), encoding="utf-8")
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8"
        )
        named = {name: name for name in modules} if points is None else points
        lines = "\n".join(f"{name} = {target}" for name, target in named.items())
        (info / "entry_points.txt").write_text(f"[luthier.plugins]\n{lines}\n", encoding="utf-8")
        importlib.invalidate_caches()
        found = importlib.metadata.distributions(path=[str(site)])
        return [point for each in found for point in each.entry_points]

    yield install
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(site)):
            del sys.modules[name]
