"""The meter sees memory that is taken and given back between two looks."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import psutil
import pytest

from luthier.core.meter import MemoryMeter, ran_out_of_memory

MIB = 1024**2


def in_fresh_process(code: str) -> list[int]:
    """What `code` prints, in an interpreter of its own: pages that this one gives back would disturb the count."""
    imports = "import numpy as np\nfrom luthier.core import meter\n"
    start = f"{imports}measured = meter.MemoryMeter()"
    done = subprocess.run(
        [sys.executable, "-c", f"{start}\n{textwrap.dedent(code)}"], capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_the_peak_is_what_was_taken_in_between() -> None:
    exact, before, peak, after, reserved = in_fresh_process(f"""
        np.ones(300 * {MIB}, dtype=np.uint8)
        measured.start()
        before = measured.current
        np.ones(120 * {MIB}, dtype=np.uint8)
        print(int(measured.exact), before, measured.peak, measured.current, measured.reserved)
    """)
    if not exact:
        pytest.skip("this kernel does not reset VmHWM")
    assert 115 * MIB < peak - before < 150 * MIB  # not the 300 of before the start
    assert after - before < 20 * MIB
    assert peak == reserved


def test_current_is_the_resident_memory() -> None:
    assert MemoryMeter().current == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_without_permission_it_samples() -> None:
    """The block is held until the sampling thread has seen it; then it is gone, and the peak is kept."""
    exact, before, after, peak, stopped = in_fresh_process(f"""
        import time
        from pathlib import Path
        meter.CLEAR = Path("/nowhere/clear_refs")
        measured.start()
        before = measured.current
        held = np.ones(100 * {MIB}, dtype=np.uint8)
        deadline = time.monotonic() + 30
        while measured._seen < before + 90 * {MIB} and time.monotonic() < deadline:
            time.sleep(0.001)
        del held
        after = measured.current
        peak = measured.peak
        measured.stop()
        print(int(measured.exact), before, after, peak, int(measured._sampler is None))
    """)
    assert not exact
    assert after < before + 20 * MIB
    assert peak > before + 90 * MIB
    assert stopped


def test_errors_that_mean_memory() -> None:
    import torch

    assert ran_out_of_memory(MemoryError())
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
