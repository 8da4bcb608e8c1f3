"""House rules that a reader can check by eye, checked by machine: file sizes, dangerous calls, method names in the core."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from luthier.registry.catalog import discover

MOST_LINES = 400

# What may run code that a file holds, or hands words to a shell (docs on the CVEs: CONTRIBUTING.md).
BANNED_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
BANNED_CALLS = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "eval",
    "exec",
}

# Words that are a built-in method's name and something else as well: (file, word), each with its reason.
OTHER_MEANINGS = {
    # keys of transformers' AttentionInterface that a model class declares: facts about the model, not methods of ours
    ("core/profile.py", "eager"),
    ("registry/detect/assemble.py", "eager"),
    ("registry/detect/assemble.py", "sdpa"),
    # a key of transformers' configurations
    ("registry/detect/fields.py", "rope_scaling"),
    # transformers' own attention, which the contract kit compares every kernel with
    ("core/testing/models.py", "eager"),
    # PyTorch tensors, to a tokenizer
    ("core/merging.py", "pt"),
}

# A method that is called like the library it opens up: in the core the word is the library's.
LIBRARIES = {"peft"}


def test_files_are_short_enough_to_read(tree) -> None:
    paths = [path for path in tree.files if path.suffix == ".py"]
    lengths = {path.as_posix(): (tree.root / path).read_text(encoding="utf-8").count("\n") for path in paths}
    assert not {path: count for path, count in lengths.items() if count > MOST_LINES}


def test_every_module_says_what_it_is(tree) -> None:
    assert not [path for path, module in tree.modules().items() if len(ast.get_docstring(module) or "") < 20]


def test_no_dangerous_calls(tree) -> None:
    wrong = [f"{path}:{line} {what}" for path, module in tree.modules().items() for line, what in dangers(module)]
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x')",
        "import torch as t\nt.save(1, 'x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import subprocess\nsubprocess.run('x', shell=yes)",
        "import yaml\nyaml.load('x')",
        "import yaml\nyaml.load('x', Loader=yaml.Loader)",
        "import yaml\nyaml.load('x', Loader=Mine)",
        "import os\nos.system('x')",
        "eval('x')",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "import torch\ntorch.jit.load('x')",
    ],
)
def test_the_check_of_dangerous_calls_itself(source: str) -> None:
    assert list(dangers(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load('x')",
        "import yaml\nclass Mine(yaml.SafeLoader): pass\nyaml.load('x', Loader=Mine)",
        "import yaml\nyaml.load('x', Loader=yaml.SafeLoader)",
        "import subprocess\nsubprocess.run(['x'], shell=False)",
        "from safetensors.torch import load, save\nload(b'x')",
        "model.eval()",
        "import json\njson.load(file)",
    ],
)
def test_what_is_not_dangerous(source: str) -> None:
    assert not list(dangers(ast.parse(source)))


def test_core_and_registry_name_no_built_in_method(tree) -> None:
    names = {
        offer.value.name
        for _, offer in discover(strict=True, disabled=()).offers()
        if offer.provider.distribution == "luthier"
    }
    assert names
    found = {
        (path, word): line
        for path, module in tree.modules().items()
        if path.startswith(("core/", "registry/"))
        for word, line in constants(module)
        if word in names - LIBRARIES or word.startswith("luthier.plugins.")
    }
    assert not {place: line for place, line in found.items() if place not in OTHER_MEANINGS}
    assert found.keys() >= OTHER_MEANINGS, "an exemption that nothing needs any more"


def constants(module: ast.AST) -> Iterator[tuple[str, int]]:
    """Every string constant that is no docstring."""
    docstrings = {
        id(node.value)
        for node in ast.walk(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, node.lineno


def dangers(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every import or call that the house forbids, whatever name it was imported under."""
    aliases = dict(_aliases(module))
    safe_loaders = {
        node.name
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and any(_dotted(base, aliases) == "yaml.SafeLoader" for base in node.bases)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if name.partition(".")[0] in BANNED_IMPORTS)
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func, aliases)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        loader = keywords.get("Loader")
        safe = loader is not None and _dotted(loader, aliases) in {*safe_loaders, "yaml.SafeLoader", "yaml.CSafeLoader"}
        if (name in BANNED_CALLS and not (name == "yaml.load" and safe)) or name == "torch.jit.load":
            yield node.lineno, name
        for word in ("shell", "allow_pickle"):
            value = keywords.get(word)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                yield node.lineno, f"{word}="


def _aliases(module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([aliases.get(node.id, node.id), *reversed(parts)])
