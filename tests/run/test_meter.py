"""The meter sees memory that is taken and given back between two looks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from luthier.core import meter
from luthier.core.meter import MemoryMeter, ran_out_of_memory

MIB = 1024**2


def take_and_give_back(mebibytes: int) -> None:
    np.ones(mebibytes * MIB, dtype=np.uint8)


def test_the_peak_is_what_was_taken_in_between() -> None:
    measured = MemoryMeter()
    take_and_give_back(300)
    measured.start()
    if not measured.exact:
        pytest.skip("this kernel does not reset VmHWM")
    before = measured.current
    take_and_give_back(120)
    assert 115 * MIB < measured.peak - before < 150 * MIB  # not the 300 of before the start
    assert measured.current - before < 20 * MIB
    assert measured.peak == measured.reserved


def test_current_is_the_resident_memory() -> None:
    assert MemoryMeter().current == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_without_permission_it_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(meter, "CLEAR", tmp_path / "no" / "clear_refs")
    measured = MemoryMeter()
    measured.start()
    assert not measured.exact
    before = measured.current
    held = np.ones(100 * MIB, dtype=np.uint8)
    deadline = time.monotonic() + 30
    while measured._seen < before + 90 * MIB and time.monotonic() < deadline:
        pass
    del held
    assert measured.peak > before + 90 * MIB
    measured.stop()
    assert measured._sampler is None


def test_errors_that_mean_memory() -> None:
    import torch

    assert ran_out_of_memory(MemoryError())
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
