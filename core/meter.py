"""How much memory a run really takes, to be set beside the prediction.

On the CPU this is the resident memory of the process. The kernel keeps its highest value itself (VmHWM) and can be told
to start anew (a "5" to /proc/self/clear_refs), so no moment between two looks is missed. Where that is not permitted, or
on another system, a thread looks every 20 ms, and `exact` is False. On CUDA it is what torch's allocator handed out.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

STATUS: Final = Path("/proc/self/status")
CLEAR: Final = Path("/proc/self/clear_refs")
INTERVAL: Final = 0.02
OUT_OF_MEMORY_TEXTS: Final = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "not enough memory")
SLACK: Final = 16 * 1024**2


class MemoryMeter:
    """Bytes in use on `device` ("cpu", "cuda", "cuda:1"): `current`, and `peak` since `start()`."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.exact = True
        self._seen = 0
        self._sampler: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def _cuda(self) -> bool:
        return self.device.startswith("cuda")

    def start(self) -> None:
        """Measure the peak from here on; a second call starts anew."""
        self.stop()
        self._seen = 0
        if self._cuda:
            import torch

            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            CLEAR.write_text("5")
            # Some sandboxes take the write and keep the old mark.
            self.exact = _status("VmHWM:") - _status("VmRSS:") < SLACK
        except OSError:
            self.exact = False
        if not self.exact:
            self._stop.clear()
            self._sampler = threading.Thread(target=self._sample, name="memory-meter", daemon=True)
            self._sampler.start()

    def stop(self) -> None:
        """End the sampling thread, where there is one."""
        if self._sampler is not None:
            self._stop.set()
            self._sampler.join()
            self._sampler = None

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._seen = max(self._seen, _resident())

    @property
    def current(self) -> int:
        """Bytes in use now."""
        if self._cuda:
            import torch

            return torch.cuda.memory_allocated(self.device)
        return _resident()

    @property
    def peak(self) -> int:
        """The most bytes in use at once since `start()`."""
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated(self.device)
        self._seen = max(self._seen, _status("VmHWM:") if self.exact else _resident())
        return self._seen

    @property
    def reserved(self) -> int:
        """The most bytes that torch's allocator held at once, unused ones included; on the CPU the same as `peak`."""
        if self._cuda:
            import torch

            return torch.cuda.max_memory_reserved(self.device)
        return self.peak


def _status(key: str) -> int:
    _, found, rest = STATUS.read_bytes().partition(key.encode())
    if not found:
        raise KeyError(key)
    return int(rest.split(maxsplit=1)[0]) * 1024


def _resident() -> int:
    if STATUS.exists():
        return _status("VmRSS:")
    import psutil

    return int(psutil.Process().memory_info().rss)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory could not be had, on whichever device; told without importing torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS))
    )
