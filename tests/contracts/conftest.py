"""Running one check of a contract by hand, to see that it catches what it is there for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.core.testing import Case


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Any:
    """For models this small a second thread only waits, long when other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., None]:
    """`check(contract, "test_it_trains", method, kind="gpt2")` runs that check of the contract on a method."""

    def run(contract: type, name: str, method: Any, kind: str = "llama", **attributes: Any) -> None:
        instance = type("Contract", (contract,), {"method": method, **attributes})()
        test = getattr(instance, name)
        given = {"case": Case(kind), "any_case": Case(kind), "tmp_path": tmp_path}
        test(**{key: value for key, value in given.items() if key in inspect.signature(test).parameters})

    return run


@pytest.fixture
def caught(check: Callable[..., None]) -> Callable[..., None]:
    """`caught(contract, check, method, words)`: the check fails, and says these words."""

    def run(contract: type, name: str, method: Any, match: str, **options: Any) -> None:
        with pytest.raises((AssertionError, LuthierError, pytest.fail.Exception), match=match):
            check(contract, name, method, **options)

    return run
