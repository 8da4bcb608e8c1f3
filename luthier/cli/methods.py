"""`luthier methods`: what the installed plugins offer, whether it can be used here, and which plugins are broken."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from luthier.cli.text import output_console, print_json
from luthier.core.catalog import BrokenPlugin, Catalog, Offer, Provider
from luthier.core.contracts import SLOTS, AnyMethod
from luthier.core.errors import ConfigError

TITLES: Final[Mapping[str, str]] = {
    "patches": "patches: how the model's own code and weights are changed (any number)",
    "adapter": "adapter: which parameters train",
    "optimizer": "optimizer: how they move",
    "attention": "attention: which kernel computes attention",
    "stage": "stage: what is learned, from which kind of data",
}


def run(*, as_json: bool, slot: str | None = None, catalog: Catalog | None = None) -> int:
    """Print the catalog, or one slot of it; `catalog` defaults to what is installed. Returns the exit code."""
    if slot is not None and slot not in SLOTS:
        near = difflib.get_close_matches(slot, SLOTS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(SLOTS)}"
        raise ConfigError(f"there is no slot {slot!r}", fix=fix)
    if catalog is None:
        from luthier.registry.catalog import discover

        catalog = discover()
    report = describe_catalog(catalog, slot)
    if as_json:
        print_json(report)
    else:
        _print(report, output_console(), slot)
    return 0


def describe_catalog(catalog: Catalog, slot: str | None = None) -> dict[str, Any]:
    """The catalog as JSON-shaped data; with `slot`, only what can stand there, and the broken plugins."""
    slots = SLOTS if slot is None else (slot,)
    report: dict[str, Any] = {
        "methods": [describe_method(where, offer) for where in slots for _, offer in sorted(catalog.slot(where).items())],
        "presets": [
            _describe(offer) | {"slot": where, "config": _plain(offer.value.config)}
            for where in slots
            for _, offer in sorted(catalog.presets.get(where, {}).items())
        ],
    }
    if slot is None:
        report["formats"] = [
            _describe(offer) | {"kind": offer.value.kind, "columns": offer.value.columns}
            for _, offer in sorted(catalog.formats.items())
        ]
        report["architectures"] = [
            {"name": offer.value.name, "provider": asdict(offer.provider), "model_types": list(offer.value.model_types)}
            for offer in catalog.architectures
        ]
        report["commands"] = [_describe(offer) for _, offer in sorted(catalog.commands.items())]
        report["observers"] = [asdict(offer.provider) for offer in catalog.observers]
    report["broken"] = [_describe_broken(broken) for broken in catalog.broken]
    report["disabled"] = list(catalog.disabled)
    return report


def describe_method(slot: str, offer: Offer[AnyMethod]) -> dict[str, Any]:
    """One method as JSON-shaped data; `missing` from package metadata alone, so nothing is imported."""
    from luthier.core.requirements import install_command

    method = offer.value
    missing = missing_here(method.packages)
    return _describe(offer) | {
        "slot": slot,
        "available": not missing,
        "missing": missing,
        "install": install_command(missing) or None,
        "packages": list(method.packages),
        "provides": sorted(method.provides),
        "requires": [sorted(requirement.traits) for requirement in method.requires],
        "conflicts": sorted(method.conflicts),
        "claims": sorted(method.claims),
        "numerics": method.numerics,
        "priority": method.priority,
        "options": [field.name for field in dataclasses.fields(method.config)],
        "reference": method.reference,
    }


def missing_here(packages: Iterable[str]) -> list[str]:
    """The requirements among `packages` that this Python installation does not meet."""
    requirements = tuple(packages)
    if not requirements:
        return []
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    from luthier.core.requirements import missing_packages

    versions: dict[str, str] = {}
    for name in {Requirement(text).name for text in requirements}:
        # What is not installed is what `missing_packages` tells of.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[canonicalize_name(name)] = importlib.metadata.version(name)
    return missing_packages(requirements, versions)


def _describe(offer: Offer[Any]) -> dict[str, Any]:
    return {"name": offer.value.name, "summary": offer.value.summary, "provider": asdict(offer.provider)}


def _describe_broken(broken: BrokenPlugin) -> dict[str, Any]:
    return {"provider": asdict(broken.provider), "error": broken.error, "names": list(broken.names)}


def _plain(config: Mapping[str, Any]) -> Any:
    from luthier.core.frozen import thaw

    return thaw(config)


def _print(report: dict[str, Any], console: Any, slot: str | None) -> None:
    for where in SLOTS if slot is None else (slot,):
        methods = [method for method in report["methods"] if method["slot"] == where]
        rows = [
            (
                method["name"],
                method["summary"],
                _who(method["provider"]),
                "yes" if method["available"] else f"no: {method['install']}",
                _traits(method),
            )
            for method in methods
        ]
        _table(console, TITLES[where], ("name", "summary", "from", "available", "traits"), rows)
    _rest(report, console)
    if report["disabled"]:
        console.print(f"switched off by LUTHIER_DISABLE_PLUGINS: {', '.join(report['disabled'])}", highlight=False)


def _traits(method: dict[str, Any]) -> str:
    lines = [
        *method["provides"],
        *(f"needs {' or '.join(requirement)}" for requirement in method["requires"]),
        *(f"not with {trait}" for trait in method["conflicts"]),
    ]
    return "\n".join(lines)


def _rest(report: dict[str, Any], console: Any) -> None:
    presets = [
        (item["name"], item["summary"], _who(item["provider"]), item["slot"], json.dumps(item["config"]))
        for item in report["presets"]
    ]
    formats = [
        (item["name"], item["summary"], _who(item["provider"]), item["kind"], item["columns"])
        for item in report.get("formats", ())
    ]
    families = [
        (item["name"], ", ".join(item["model_types"]), _who(item["provider"])) for item in report.get("architectures", ())
    ]
    commands = [(item["name"], item["summary"], _who(item["provider"])) for item in report.get("commands", ())]
    broken = [
        (item["provider"]["plugin"], item["error"], _who(item["provider"]), ", ".join(item["names"]) or "unknown")
        for item in report["broken"]
    ]
    _table(console, "presets: names for combinations", ("name", "summary", "from", "slot", "stands for"), presets)
    _table(console, "data formats", ("name", "summary", "from", "kind", "columns"), formats)
    _table(console, "architecture families", ("name", "model types", "from"), families)
    _table(console, "commands", ("name", "summary", "from"), commands)
    _table(console, "broken plugins: everything else works without them", ("plugin", "error", "from", "names lost"), broken)


def _table(console: Any, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """One table; nothing where there are no rows. Cells are text: an error message may hold rich's brackets."""
    if not rows:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _who(provider: dict[str, str]) -> str:
    return str(Provider(**provider))
