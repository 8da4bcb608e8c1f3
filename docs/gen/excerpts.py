"""Pieces of the real source, and real output of quick commands, for pages that show them."""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from blocks import ROOT
from methods import own_catalog

LANGUAGES = {".py": "py", ".toml": "toml", ".yaml": "yaml", ".jsonl": "json"}


def excerpt(page: Path, words: list[str]) -> str:
    """`excerpt PATH`: a whole file. `excerpt PATH NAME...`: functions, classes or `Class.method`s of it.

    The fence says `py`, not `python`: an excerpt is shown, and a `python` block of these pages is run by a test.
    """
    path, *names = words
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py") and not names:
        names = [] if len(text.splitlines()) < 120 else _fail(f"{path} is too long to show whole")
    body = "\n\n\n".join(symbol(text, name, path) for name in names) if names else text.strip("\n")
    return f'```{LANGUAGES[Path(path).suffix]} title="{path}"\n{body}\n```'


def symbol(text: str, name: str, path: str) -> str:
    """The source of one function, class, method or assignment, decorators included. Raises KeyError when there is none."""
    body = ast.parse(text).body
    *owners, last = name.split(".")
    for owner in owners:
        body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == owner), [])
    for node in body:
        if last in _names(node):
            decorators = getattr(node, "decorator_list", [])
            first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
            return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    raise KeyError(f"{path} has no {name}")


def output(page: Path, words: list[str]) -> str:
    """`output luthier VERB...`: what a quick verb prints, which depends on nothing but the code."""
    written = io.StringIO()
    with _plain_terminal(), redirect_stdout(written), redirect_stderr(written):
        _run(words[1:])
    text = re.sub(r"[ \t]+$", "", written.getvalue(), flags=re.MULTILINE)
    return f"```console\n$ {' '.join(words)}\n{text.strip()}\n```"


def _run(words: list[str]) -> None:
    verb, *rest = words
    if verb == "methods" and "--help" not in rest:
        from luthier.cli import methods

        methods.run(as_json=False, slot=rest[1] if rest else None, catalog=own_catalog())
    elif verb == "explain" and "--help" not in rest:
        from luthier.cli import explain

        explain.run(rest[0], as_json=False, catalog=own_catalog())
    else:
        from luthier.cli import main

        # click takes the program's name from how Python itself was started.
        started = patch.object(sys.modules["__main__"], "__package__", "", create=True)
        with started, patch("luthier.registry.catalog.discover", own_catalog), patch.object(sys, "argv", ["luthier"]):
            main(words)


@contextmanager
def _plain_terminal() -> Iterator[None]:
    """No colour, and one width whatever terminal this runs in."""
    with patch.dict(os.environ, {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}):
        yield


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _fail(message: str) -> list[str]:
    raise ValueError(message)
