"""Which module may import which: one way, nothing twice, nothing heavy while the command line starts."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

RUFF = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
HEAVY = set(RUFF["lint"]["flake8-tidy-imports"]["banned-module-level-imports"])
OURS = ("core", "registry", "plugins", "benchmarks")
SHARED_BY_PLUGINS = ("luthier.plugins._peft", "luthier.plugins._bitsandbytes", "luthier.plugins._trl")


def imported(module: ast.AST, name: str, *, is_package: bool) -> Iterator[tuple[str, int]]:
    """Everything that `module` imports anywhere, absolute, with the line; `from a import b` is a.b, module or not."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def allowed(path: str, target: str) -> bool:
    """Whether the module at `path` may import `target`, a module of ours."""
    folder, *rest = path.split("/")
    if within(target, "luthier.cli"):
        return path.startswith("luthier/cli/") or path == "luthier/__main__.py"
    if folder == "core":
        return within(target, "luthier.core")
    if folder == "registry":
        return within(target, "luthier.core") or within(target, "luthier.registry")
    if folder == "plugins" and len(rest) > 1:
        # plugins/_*/ are no plugins: they hold what several plugins of one library share.
        own = (f"luthier.plugins.{rest[0]}", *([] if rest[0].startswith("_") else SHARED_BY_PLUGINS))
        return within(target, "luthier.core") or any(within(target, package) for package in own)
    if folder == "plugins":
        return False
    if folder == "luthier":
        return not within(target, "luthier.benchmarks")
    return True


def test_imports_go_one_way(tree) -> None:
    wrong = []
    for path, module in tree.modules().items():
        for target, line in imported(module, tree.module_name(path), is_package=path.endswith("__init__.py")):
            if within(target, "luthier"):
                if not allowed(path, target):
                    wrong.append(f"{path}:{line} imports {target}")
            elif target.partition(".")[0] in OURS:
                wrong.append(f"{path}:{line} imports {target}: the package is luthier.{target}")
    assert not wrong


@pytest.mark.parametrize(
    ("path", "target", "expected"),
    [
        ("core/plan.py", "luthier.core.frozen", True),
        ("core/plan.py", "luthier.registry.catalog", False),
        ("core/plan.py", "luthier.plugins.lora", False),
        ("core/plan.py", "luthier.api", False),
        ("registry/catalog.py", "luthier.core", True),
        ("registry/catalog.py", "luthier.plugins.lora", False),
        ("plugins/lora/attach.py", "luthier.plugins.lora", True),
        ("plugins/lora/attach.py", "luthier.plugins.full", False),
        ("plugins/lora/attach.py", "luthier.plugins.lora_fused", False),
        ("plugins/lora/attach.py", "luthier.registry.catalog", False),
        ("plugins/lora/attach.py", "luthier.plugins._peft.layers", True),
        ("plugins/_peft/layers.py", "luthier.plugins.lora", False),
        ("plugins/_peft/layers.py", "luthier.plugins._bitsandbytes", False),
        ("luthier/api.py", "luthier.registry.catalog", True),
        ("luthier/api.py", "luthier.cli.app", False),
        ("luthier/cli/app.py", "luthier.cli.text", True),
        ("benchmarks/run.py", "luthier.api", True),
        ("luthier/api.py", "luthier.benchmarks", False),
    ],
)
def test_the_rule_itself(path: str, target: str, expected: bool) -> None:
    assert allowed(path, target) is expected


def test_imports_are_found_in_every_form() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g import h\n    from .. import i"
    found = {target for target, _ in imported(ast.parse(source), "luthier.core.config.load", is_package=False)}
    assert {"a.b", "c.d", "luthier.core.config.e", "luthier.core.g.h", "luthier.core.i"} == found
    found = {target for target, _ in imported(ast.parse("from .x import y"), "luthier.core.config", is_package=True)}
    assert "luthier.core.config.x.y" in found


@pytest.mark.parametrize("folder", OURS)
def test_a_module_cannot_load_under_two_names(tree, folder: str) -> None:
    """From the repository root `import core` would find the folder; it must fail and say which import is meant."""
    command = [sys.executable, "-c", f"import {folder}"]
    done = subprocess.run(command, cwd=tree.root, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"this folder is the package luthier.{folder}" in done.stderr
    inside = [sys.executable, "-c", f"import {folder}.anything"]
    nested = subprocess.run(inside, cwd=tree.root, capture_output=True, text=True, check=False)
    assert f"import luthier.{folder}" in nested.stderr


@pytest.mark.parametrize("folder", OURS)
def test_the_package_itself_imports(tree, folder: str) -> None:
    command = [sys.executable, "-c", f"import luthier.{folder}"]
    done = subprocess.run(command, cwd=tree.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ruff_finds_no_heavy_import_at_module_level(tree) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID253", *tree.packages]
    done = subprocess.run(command, cwd=tree.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_plugin_entry_modules_import_nothing_heavy(tree) -> None:
    """Stricter than the lint: also under `try`, `if` and in class bodies; only functions and TYPE_CHECKING are left."""
    entries = {path: module for path, module in tree.modules().items() if is_entry(path)}
    assert entries
    wrong = [f"{path}:{line} imports {name}" for path, module in entries.items() for name, line in heavy_at_import(module)]
    assert not wrong


def test_the_check_of_entry_modules_itself() -> None:
    source = "import torch.nn\ntry:\n    from peft import x\nexcept ImportError:\n    pass\nclass C:\n    import trl\n"
    assert [name for name, _ in heavy_at_import(ast.parse(source))] == ["torch", "peft", "trl"]
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import peft\n"
    assert list(heavy_at_import(ast.parse(lazy))) == []


def is_entry(path: str) -> bool:
    return path.startswith("plugins/") and path.endswith("/__init__.py")


def heavy_at_import(node: ast.AST) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            names = [child.module or ""] if isinstance(child, ast.ImportFrom) else [alias.name for alias in child.names]
            roots = (name.partition(".")[0] for name in names)
            yield from ((root, child.lineno) for root in roots if root in HEAVY)
        yield from heavy_at_import(child)
