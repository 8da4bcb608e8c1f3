"""What this machine is: packages, processor, memory, device, and how fast and exact its matrix products are."""

from __future__ import annotations

import math
import os
import platform
import sys
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Final

from packaging.utils import canonicalize_name

from luthier.core.environment import DeviceKind, Environment, MatmulRate
from luthier.core.frozen import FrozenDict

CGROUPS: Final = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS: Final = Path("/proc/self/cgroup")
CPU_INFO: Final = Path("/proc/cpuinfo")


def read_environment(*, probe: bool = True) -> Environment:
    """The machine as a value. Imports torch to ask for the device; with `probe`, measures matrix products (cached)."""
    cpu, cores = cpu_name(), usable_cores()
    device = _device()
    rates: FrozenDict[str, MatmulRate] = FrozenDict()
    if probe and device["device"] != "mps":
        from luthier.registry.probe import matmul_rates

        rates = FrozenDict(matmul_rates(device["device"], device["device_name"] or cpu, cores))
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        cores=cores,
        memory=usable_memory(),
        matmul=rates,
        packages=installed_packages(),
        **device,
    )


def installed_packages() -> FrozenDict[str, str]:
    """Version by canonical name of every installed distribution, from metadata alone; the first on the path counts."""
    versions: dict[str, str] = {}
    for distribution in metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name and version:
            versions.setdefault(canonicalize_name(name), version)
    return FrozenDict(dict(sorted(versions.items())))


def cpu_name() -> str:
    """The processor's model name, or its architecture where the system does not tell."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the container's share of processor time, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    share = _cpu_share()
    return allowed if share is None else max(1, min(allowed, math.ceil(share)))


def usable_memory() -> int:
    """Bytes of memory of the machine, or of the container where that has less."""
    import psutil

    return min([psutil.virtual_memory().total, *_memory_limits()])


def _cpu_share() -> float | None:
    """Cores' worth of processor time that the tightest cgroup grants, or None when nothing limits it."""
    shares: list[float] = []
    for folder in _cgroup_folders(""):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        shares += _ratio(quota, period)
    for folder in _cgroup_folders("cpu"):
        shares += _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
    return min(shares, default=None)


def _memory_limits() -> list[int]:
    """The limits in bytes that cgroups of both versions put on this process; "max" and v1's huge number drop out."""
    texts = [_read(folder / "memory.max") for folder in _cgroup_folders("")]
    texts += [_read(folder / "memory.limit_in_bytes") for folder in _cgroup_folders("memory")]
    return [int(text) for text in texts if text.isdigit()]


def _ratio(quota: str, period: str) -> list[float]:
    return [int(quota) / int(period)] if quota.isdigit() and period.isdigit() and int(period) else []


def _cgroup_folders(controller: str) -> list[Path]:
    """This process's cgroup folder and those above it; `controller` "" for version 2, else the one of version 1.

    A container usually sees its own group as the root of the mount, so that folder counts too.
    """
    mount = CGROUPS / controller
    for line in _read(CGROUP_OF_PROCESS).splitlines():
        _, controllers, inside = [*line.split(":", 2), "", ""][:3]
        if (controller in controllers.split(",")) if controller else (controllers == ""):
            place = PurePosixPath(inside.lstrip("/"))
            return [mount / part for part in (place, *place.parents)]
    return [mount]


def _read(path: Path) -> str:
    """The stripped text of a small system file; empty where it does not exist or may not be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _device() -> dict[str, Any]:
    """The fields of Environment that torch knows: the device that training would use."""
    import torch

    if torch.cuda.is_available():
        index = torch.cuda.current_device()
        return {
            "device": "cuda",
            "device_name": torch.cuda.get_device_name(index),
            "device_count": torch.cuda.device_count(),
            "device_memory": int(torch.cuda.get_device_properties(index).total_memory),
            "capability": torch.cuda.get_device_capability(index),
        }
    if sys.platform == "darwin" and torch.backends.mps.is_available():
        memory = int(torch.mps.recommended_max_memory())
        return {"device": "mps", "device_name": "Apple GPU", "device_count": 1, "device_memory": memory}
    kind: DeviceKind = "cpu"
    return {"device": kind, "device_name": ""}
