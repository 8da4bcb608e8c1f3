"""The tree as the guards see it, and the wheel that is built from it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Folder in the repository -> package that it is installed as (pyproject.toml, tool.setuptools.package-dir).
PACKAGES = {
    "luthier": "luthier",
    "core": "luthier.core",
    "registry": "luthier.registry",
    "plugins": "luthier.plugins",
    "benchmarks": "luthier.benchmarks",
}


class Tree:
    """The files that belong to the repository: tracked, or new and not ignored. Build folders are neither."""

    root = ROOT
    packages = PACKAGES

    def __init__(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        self.files = sorted(Path(name) for name in listed if name and (ROOT / name).is_file())

    def modules(self) -> dict[str, ast.Module]:
        """The syntax tree of every module of the five packages, by path."""
        return {
            path.as_posix(): ast.parse((ROOT / path).read_text(encoding="utf-8"))
            for path in self.files
            if path.suffix == ".py" and path.parts[0] in PACKAGES
        }

    def module_name(self, path: str) -> str:
        """ "core/config/load.py" becomes "luthier.core.config.load"."""
        parts = list(Path(path).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        return ".".join([PACKAGES[parts[0]], *parts[1:]])


@pytest.fixture(scope="session")
def tree() -> Tree:
    if not (ROOT / ".git").exists():
        pytest.skip("the guards look at a git checkout")
    return Tree()


@pytest.fixture(scope="session")
def wheel(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools would take stale files from a build folder, and leave one behind."""
    source = tmp_path_factory.mktemp("source")
    for path in tree.files:
        if path.parts[0] in PACKAGES or len(path.parts) == 1:
            target = source / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree.root / path, target)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built
