"""How fast and how exact this machine's matrix products are, by data type: measured, because names do not tell.

One processor multiplies bfloat16 three times as fast as float32, its neighbour of another make at half the speed, and
"float32" may be rounded on the way. The probe times the three products of a linear layer's training step (forward x @ W.T,
backward dy @ W and dy.T @ x) at 1024 x 1024 x 1024, takes the best of a few repetitions, and compares one with float64. The
result is kept in the cache folder under the processor, torch and its number of threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any, Final

from luthier.core.atomic import write_text
from luthier.core.caching import cache_folder
from luthier.core.environment import MatmulRate

PROBE_VERSION: Final = 1
SIZE: Final = 1024
# Seconds for each type, unless a slow machine needs more for the least number of rounds.
TIME_PER_TYPE: Final = 0.1
LEAST_ROUNDS: Final = 3
MOST_ROUNDS: Final = 200
DTYPES: Final[dict[str, tuple[str, ...]]] = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}


def matmul_rates(device: str, name: str, cores: int) -> dict[str, MatmulRate]:
    """The probe's result for a device "cpu" or "cuda" called `name`: from the cache, else measured and kept there."""
    import torch

    key = {
        "version": PROBE_VERSION,
        "device": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": cores,
        "float32_precision": torch.get_float32_matmul_precision(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "probe" / f"{digest}.json"
    known = _read(path, key, DTYPES[device])
    if known is not None:
        return known
    measured = measure(device, DTYPES[device])
    plain = {dtype: {"gflops": rate.gflops, "error": rate.error} for dtype, rate in measured.items()}
    # Without a cache it is measured again in each run, at half a second: no reason to stop, and `luthier doctor` shows it.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"key": key, "rates": plain}, indent=2))
    return measured


def _read(path: Path, key: dict[str, Any], dtypes: tuple[str, ...]) -> dict[str, MatmulRate] | None:
    """The cached result, or None where there is none or it is not what this version writes (it is measured again)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        rates = {dtype: MatmulRate(**content["rates"][dtype]) for dtype in dtypes}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    numbers = [number for rate in rates.values() for number in (rate.gflops, rate.error)]
    sound = all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers)
    return rates if sound else None


def measure(device: str, dtypes: tuple[str, ...], size: int = SIZE) -> dict[str, MatmulRate]:
    """Time the three products of a linear layer's step in each type, in turns, so that a busy moment slows all of them.

    Rate: 3 * 2 * size^3 operations over the best time, in GFLOP/s. Error: largest deviation of the forward product from
    float64 over the same rounded inputs, relative to the largest exact value.
    """
    products = {dtype: _Products(device, dtype, size) for dtype in dtypes}
    errors = {dtype: product.error() for dtype, product in products.items()}
    times: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    for dtype in itertools.islice(itertools.cycle(dtypes), MOST_ROUNDS * len(dtypes)):
        if len(times[dtype]) >= LEAST_ROUNDS and sum(times[dtype]) > TIME_PER_TYPE:
            break
        times[dtype].append(products[dtype].time())
    operations = 6 * size**3
    return {
        dtype: MatmulRate(gflops=round(operations / min(times[dtype]) / 1e9, 2), error=errors[dtype]) for dtype in dtypes
    }


class _Products:
    """The operands of one type on the device: activations of size one, weights scaled as a layer's are."""

    def __init__(self, device: str, dtype: str, size: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        kind = getattr(torch, dtype)
        self.on_gpu = device == "cuda"
        self.hidden = torch.randn(size, size, generator=generator).to(device, kind)
        self.grad = torch.randn(size, size, generator=generator).to(device, kind)
        self.weight = (torch.randn(size, size, generator=generator) / math.sqrt(size)).to(device, kind)

    def error(self) -> float:
        """Of the first eighth of the rows: float64 is the slow part. It also warms up what `time` measures."""
        self.time()
        rows = max(1, self.hidden.shape[0] // 8)
        exact = self.hidden[:rows].double() @ self.weight.double().T
        product = (self.hidden @ self.weight.T)[:rows].double()
        return float((product - exact).abs().max() / exact.abs().max())

    def time(self) -> float:
        """Seconds for forward, gradient of the input and gradient of the weight."""
        self._wait()
        begin = time.perf_counter()
        self.hidden @ self.weight.T
        self.grad @ self.weight
        self.grad.T @ self.hidden
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()
