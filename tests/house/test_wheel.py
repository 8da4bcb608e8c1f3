"""The wheel holds what the tree holds: a sub-package missing from pyproject.toml works editable and is absent here."""

from __future__ import annotations

import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path


def test_modules_of_the_wheel_are_those_of_the_tree(tree, wheel: Path) -> None:
    expected = {
        f"{tree.packages[path.parts[0]].replace('.', '/')}/{'/'.join(path.parts[1:])}"
        for path in tree.files
        if path.suffix == ".py" and path.parts[0] in tree.packages
    }
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    built = {name for name in names if name.endswith(".py")}
    assert sorted(expected - built) == [], "in the tree and not in the wheel: add the package to pyproject.toml"
    assert sorted(built - expected) == []
    assert "luthier/py.typed" in names
    assert not [name for name in names if name.startswith(("core/", "registry/", "plugins/", "benchmarks/", "tests/"))]


def test_every_plugin_folder_is_an_entry_point(tree, wheel: Path) -> None:
    folders = {path.parts[1] for path in tree.files if path.parts[0] == "plugins" and len(path.parts) > 2}
    folders = {name for name in folders if not name.startswith("_")}  # what several plugins share is no plugin
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("entry_points.txt"))).decode()
    parser = ConfigParser(delimiters="=")
    parser.read_string(text)
    built = dict(parser["luthier.plugins"])
    assert {target.removeprefix("luthier.plugins.") for target in built.values()} == folders
    declared = tomllib.loads((tree.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert built == declared["luthier.plugins"]
    assert parser["console_scripts"]["luthier"] == "luthier.cli:main"
