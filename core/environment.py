"""The machine as a value: read once by the registry, given to the resolver, written to environment.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from luthier.core.frozen import FrozenDict
from luthier.core.traits import Trait

DeviceKind = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class MatmulRate:
    """One measured matrix product: rate in GFLOP/s, and its largest relative error against float64."""

    gflops: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the plan may depend on; memory in bytes, versions from package metadata without importing anything.

    `matmul` holds the dtype probe by name ("float32", "bfloat16"): the resolver chooses the precision from it,
    because a device's name does not tell how fast its bf16 is. It is empty when the probe was not run.
    """

    python: str
    platform: str
    cpu: str
    cores: int
    memory: int
    device: DeviceKind = "cpu"
    device_name: str = ""
    device_count: int = 0
    device_memory: int = 0
    capability: tuple[int, int] | None = None
    matmul: FrozenDict[str, MatmulRate] = field(default_factory=FrozenDict)
    packages: FrozenDict[str, str] = field(default_factory=FrozenDict)
    engine: Literal["single", "ddp", "fsdp", "deepspeed"] = "single"

    @property
    def traits(self) -> frozenset[Trait]:
        """Facts about the machine that methods may require or conflict with."""
        return frozenset({f"device.{self.device}", f"engine.{self.engine}"})
