"""The documentation keeps its word: every Python block runs, every hook has a page, every signature is the real one."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.core.hookspecs import HOOKS, HookSpecs

DOCS = Path(__file__).parents[2] / "docs"
# ```python is run; a piece that is shown only (a signature, an excerpt) is ```py.
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(page for page in DOCS.rglob("*.md") if "```python" in page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Line number of the fence and code of every block of a language."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start()) + 1, match[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page share one namespace, from top to bottom, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    # A real module, because dataclasses look their module up; without the future imports of this file.
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code in blocks(page, "python"):
        # The empty lines in front make a traceback point into the page.
        exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), vars(module))  # noqa: S102


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_has_a_page_with_its_signature_and_an_example(hook: str) -> None:
    page = DOCS / "hooks" / f"{hook}.md"
    assert page.is_file()
    assert page.read_text(encoding="utf-8").startswith(f"# {hook}\n")
    shown = [code.strip() for _, code in blocks(page, "py")]
    assert shown == [signature(hook)]
    assert any("@hookimpl" in code and f"def {hook}(" in code for _, code in blocks(page, "python"))
    assert f"[{hook}]({hook}.md)" in (DOCS / "hooks" / "index.md").read_text(encoding="utf-8")


def test_no_page_of_a_hook_that_is_gone() -> None:
    assert {page.stem for page in (DOCS / "hooks").glob("luthier_*.md")} == set(HOOKS)


def signature(hook: str) -> str:
    """The specification as a plugin writes it: without `self`."""
    annotations = dict(vars(HookSpecs)[hook].__annotations__)
    returns = annotations.pop("return")
    arguments = ", ".join(f"{name}: {annotation}" for name, annotation in annotations.items())
    return f"def {hook}({arguments}) -> {returns}: ..."
