"""The one pass over transformers' whole causal-LM mapping that every test of this area shares."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GENERATOR = Path(__file__).resolve().parents[2] / "docs" / "gen" / "architectures.py"


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    """docs/gen/architectures.py as a module: it builds the default models, the test and the page look at the same ones."""
    spec = importlib.util.spec_from_file_location("gen_architectures", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rows(generator: ModuleType) -> list[Any]:
    """One row for each model type: its profile, or why it could not be built."""
    return list(generator.survey())
