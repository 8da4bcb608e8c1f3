"""The machine as it is read: packages without imports, cores and memory with the container's limits."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from luthier.registry import environment
from luthier.registry.environment import installed_packages, read_environment, usable_cores, usable_memory

GIB = 1024**3


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys/fs/cgroup and a process in the version 2 group /slice/pod."""
    monkeypatch.setattr(environment, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(environment, "CGROUP_OF_PROCESS", tmp_path / "self")
    (tmp_path / "self").write_text("0::/slice/pod\n")
    (tmp_path / "cgroup" / "slice" / "pod").mkdir(parents=True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    return tmp_path / "cgroup"


def test_packages_are_all_distributions_by_canonical_name() -> None:
    packages = installed_packages()
    for name in ("torch", "transformers", "huggingface-hub", "luthier"):
        assert packages[name] == importlib.metadata.version(name)
    assert all(name == name.lower() and "_" not in name for name in packages)


def test_reading_packages_imports_none_of_them() -> None:
    code = (
        "import sys; from luthier.registry.environment import installed_packages; assert 'torch' in installed_packages();"
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cores_follow_affinity(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5}, raising=False)
    assert usable_cores() == 2


@pytest.mark.parametrize(("content", "cores"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("", 8)])
def test_cores_follow_the_container_of_version_2(cgroups: Path, content: str, cores: int) -> None:
    (cgroups / "slice" / "cpu.max").write_text(content)
    assert usable_cores() == cores


def test_cores_and_memory_follow_the_container_of_version_1(cgroups: Path) -> None:
    environment.CGROUP_OF_PROCESS.write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    for controller in ("cpu", "memory"):
        (cgroups / controller).mkdir()
    # A container sees its own group as the root of the mount.
    (cgroups / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (cgroups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (cgroups / "memory" / "memory.limit_in_bytes").write_text(f"{GIB // 2}\n")
    assert usable_cores() == 4
    assert usable_memory() == GIB // 2
    (cgroups / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores() == 8


def test_memory_is_the_tightest_limit_on_the_way_up(cgroups: Path) -> None:
    (cgroups / "slice" / "memory.max").write_text(f"{GIB // 4}\n")
    (cgroups / "slice" / "pod" / "memory.max").write_text("max\n")
    assert usable_memory() == GIB // 4
    (cgroups / "slice" / "pod" / "memory.max").write_text(f"{GIB // 8}\n")
    assert usable_memory() == GIB // 8


def test_memory_without_a_limit_is_the_machines(cgroups: Path) -> None:
    (cgroups / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert usable_memory() == psutil.virtual_memory().total


def test_environment_of_this_machine() -> None:
    import torch

    read = read_environment(probe=False)
    assert read.matmul == {}
    assert read.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert read.cores <= (os.cpu_count() or 1)
    assert read.packages["torch"] == importlib.metadata.version("torch")
    assert f"device.{read.device}" in read.traits
    assert hash(read) == hash(read_environment(probe=False))
