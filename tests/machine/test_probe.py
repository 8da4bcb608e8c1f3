"""The dtype probe: numbers that follow from the formats, and a cache that is never believed blindly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.environment import MatmulRate
from luthier.registry import probe
from luthier.registry.probe import matmul_rates, measure


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "SIZE", 32)
    return tmp_path / "probe"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measuring replaced by fixed numbers; the list grows with each time it happens."""
    calls: list[str] = []

    def fixed(device: str, dtypes: tuple[str, ...]) -> dict[str, MatmulRate]:
        calls.append(device)
        return {dtype: MatmulRate(gflops=100.0 * len(calls), error=1e-7) for dtype in dtypes}

    monkeypatch.setattr(probe, "measure", fixed)
    return calls


def test_errors_are_those_of_the_formats() -> None:
    rates = measure("cpu", ("float32", "bfloat16"), size=128)
    # Storing the result alone rounds by up to half a unit in the last place: 2^-9 of the largest value in bfloat16.
    assert 2**-12 < rates["bfloat16"].error < 2**-7
    assert rates["float32"].error < 128 * 2**-24
    assert all(rate.gflops > 0 for rate in rates.values())


def test_rate_counts_three_products_at_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 9.0] + [0.5, 0.25, 0.125, 0.5, 0.5, 0.5] * 200)
    monkeypatch.setattr(probe._Products, "time", lambda self: next(times))
    rates = measure("cpu", ("float32", "bfloat16"), size=100)
    # m = n = k = 100: 2 m n k operations for each of three products.
    assert rates["float32"].gflops == round(3 * 2 * 100**3 / 0.125 / 1e9, 2)
    assert rates["bfloat16"].gflops == round(3 * 2 * 100**3 / 0.25 / 1e9, 2)


def test_second_reading_comes_from_the_cache(cache: Path, measured: list[str]) -> None:
    first = matmul_rates("cpu", "processor A", 2)
    assert matmul_rates("cpu", "processor A", 2) == first
    assert len(measured) == 1
    assert set(first) == {"float32", "bfloat16"}
    assert matmul_rates("cpu", "processor B", 2) != first
    assert len(measured) == 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[1]",
        '{"key": {}}',
        '{"rates": {"float32": {"gflops": NaN, "error": 0}, "bfloat16": {"gflops": 1, "error": 0}}}',
        '{"rates": {"float32": {"gflops": "fast", "error": 0}, "bfloat16": {"gflops": 1, "error": 0}}}',
        '{"rates": {"float32": {"gflops": -5, "error": 0}, "bfloat16": {"gflops": 1, "error": 0}}}',
        '{"rates": {"float32": {"gflops": 1, "error": 0}}}',
        '{"rates": {"float32": {"speed": 1}, "bfloat16": {"gflops": 1, "error": 0}}}',
        '{"key": {"device": "another"}}',
    ],
)
def test_damaged_cache_is_measured_again_and_mended(cache: Path, measured: list[str], damage: str) -> None:
    matmul_rates("cpu", "processor", 2)
    (file,) = cache.iterdir()
    sound = json.loads(file.read_text())
    if damage.startswith("{") and damage.endswith("}"):
        damage = json.dumps(sound | json.loads(damage))
    file.write_text(damage)
    assert matmul_rates("cpu", "processor", 2)["float32"].gflops == 200
    assert matmul_rates("cpu", "processor", 2)["float32"].gflops == 200
    assert len(measured) == 2


def test_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file"))
    assert matmul_rates("cpu", "processor", 2)["float32"].gflops == 100
    assert matmul_rates("cpu", "processor", 2)["float32"].gflops == 200
