"""What a benchmark result must say about where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("luthier", "torch", "transformers", "peft", "accelerate")


def describe_machine() -> dict[str, Any]:
    """CPU, cores, load, Python, package versions and the commit, JSON-shaped."""

    from luthier.registry.environment import read_environment

    environment = read_environment(probe=False)
    return {
        "cpu": environment.cpu,
        "cores": environment.cores,
        "memory": environment.memory,
        "device": environment.device_name or environment.device,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "commit": commit(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The commit of the working tree, with a plus sign where it has changes."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=here)
    changed = subprocess.run(["git", "status", "--short"], capture_output=True, text=True, check=True, cwd=here)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
