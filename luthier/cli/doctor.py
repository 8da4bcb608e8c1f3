"""`luthier doctor`: this machine as Luthier sees it, and what to type for whatever is missing.

Everything that can still be found out is reported, however much is missing: it is the verb for when nothing else works.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from luthier.cli.text import output_console, print_json, size
from luthier.core.catalog import Catalog, Offer
from luthier.core.environment import Environment
from luthier.core.errors import ExitCode, PluginError
from luthier.core.requirements import core_requirements, install_command, missing_packages, why_missing
from luthier.core.serial import to_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


def run(*, as_json: bool) -> int:
    """Report; 0 when the core works, 3 when a package that it cannot do without is missing, too old or does not start."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        show(report, output_console())
    return ExitCode.DONE if report["ok"] else ExitCode.ENVIRONMENT


def examine() -> dict[str, Any]:
    """The whole report, JSON-shaped."""
    import luthier
    from luthier.registry.environment import installed_packages

    packages = installed_packages()
    problems = [_problem(text, packages) for text in missing_packages(core_requirements(), packages)]
    environment = _attempt(problems, _environment, None)
    catalog = _attempt(problems, _catalog, Catalog())
    cache = _attempt(problems, _cache, None)
    return {
        "ok": not problems,
        "problems": problems,
        "luthier": luthier.__version__,
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "machine": _machine(environment),
        "precision": _precision(environment),
        "packages": _core_packages(packages),
        "cache": cache,
        "plugins": list(_plugins(catalog, packages)),
        "broken": [{"provider": to_plain(plugin.provider), "error": plugin.error} for plugin in catalog.broken],
        "disabled": list(catalog.disabled),
    }


def _problem(requirement: str, packages: Mapping[str, str]) -> dict[str, str]:
    return {"problem": why_missing(requirement, packages), "fix": f'pip install "{requirement}"'}


def _attempt(problems: list[dict[str, str]], read: Callable[[], T], otherwise: T) -> T:
    """What `read` finds; where it cannot even start, one more problem and `otherwise`."""
    try:
        return read()
    except (ImportError, OSError, RuntimeError, PluginError) as error:
        fix = "install the package that this names again, for this Python and this device"
        problems.append({"problem": f"{type(error).__name__}: {error}", "fix": fix})
        return otherwise


def _environment() -> Environment:
    from luthier.registry.environment import read_environment

    return read_environment()


def _catalog() -> Catalog:
    """The plugins; LUTHIER_STRICT_PLUGINS would raise for a broken one, and here it is to be listed."""
    from luthier.registry.catalog import discover

    return discover(strict=False)


def _machine(environment: Environment | None) -> dict[str, Any] | None:
    if environment is None:
        return None
    return {key: value for key, value in to_plain(environment).items() if key not in ("packages", "python", "engine")}


def _precision(environment: Environment | None) -> dict[str, Any] | None:
    """What `precision: auto` comes to on this machine, with the base weights frozen and with them trained."""
    from luthier.core.resolve.precision import decide_precision

    if environment is None:
        return None
    cases = {"base_frozen": frozenset({"base.frozen"}), "base_trained": frozenset({"params.full_rank"})}
    return {case: to_plain(decide_precision("auto", environment, facts)[0]) for case, facts in cases.items()}


def _core_packages(packages: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each requirement of the core with the version found and whether that will do."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    return [
        {
            "requirement": text,
            "version": packages.get(canonicalize_name(Requirement(text).name)),
            "ok": not missing_packages([text], packages),
        }
        for text in core_requirements()
    ]


def _cache() -> dict[str, Any]:
    """The cache folder, the space on its disk, and the built-in models that are ready in it."""
    from luthier.core.caching import CACHE_VARIABLE, cache_folder
    from luthier.registry.aliases import ALIASES, is_converted

    folder = cache_folder()
    ready = [alias for alias, model in ALIASES.items() if is_converted(model)]
    return {
        "folder": str(folder),
        "free": _free_space(folder),
        "writable": _can_write(folder),
        "models": ready,
        "variable": CACHE_VARIABLE,
    }


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _free_space(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _can_write(folder: Path) -> bool:
    place = _existing(folder)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def _plugins(catalog: Catalog, packages: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Each plugin that loaded: what it offers, and for its methods what is not installed and the command for it."""
    offered: dict[str, list[tuple[str, Offer[Any]]]] = {}
    for label, offer in _everything(catalog):
        offered.setdefault(offer.provider.plugin, []).append((label, offer))
    for plugin, offers in sorted(offered.items()):
        wanted = dict.fromkeys(text for _, offer in offers for text in getattr(offer.value, "packages", ()))
        missing = missing_packages(wanted, packages)
        yield {
            "plugin": plugin,
            "provider": str(offers[0][1].provider),
            "offers": [label for label, _ in offers],
            "available": not missing,
            "missing": [why_missing(text, packages) for text in missing],
            "install": install_command(missing),
        }


def _everything(catalog: Catalog) -> Iterator[tuple[str, Offer[Any]]]:
    for slot, method in catalog.offers():
        yield f"{slot}: {method.value.name}", method
    for slot, presets in catalog.presets.items():
        for name, preset in sorted(presets.items()):
            yield f"{slot} preset: {name}", preset
    for name, data_format in sorted(catalog.formats.items()):
        yield f"data format: {name}", data_format
    for family in catalog.architectures:
        yield f"architecture: {family.value.name}", family
    for name, command in sorted(catalog.commands.items()):
        yield f"command: {name}", command
    for observer in catalog.observers:
        yield "observer", observer


def show(report: Mapping[str, Any], console: Any) -> None:
    """The report as a person reads it, on standard output."""
    from rich.table import Table
    from rich.text import Text

    def table(title: str) -> Table:
        console.print(Text(f"\n{title}", style="bold"))
        return Table(box=None, show_header=False, padding=(0, 2, 0, 2))

    facts = table(f"Luthier {report['luthier']}, Python {report['python']} ({report['executable']})")
    for label, text in _facts(report):
        facts.add_row(Text(label, style="cyan"), Text(text))
    console.print(facts)

    versions = table("Packages")
    for package in report["packages"]:
        mark = Text("ok", style="green") if package["ok"] else Text("missing or too old", style="red")
        versions.add_row(Text(package["requirement"]), Text(package["version"] or "not installed"), mark)
    console.print(versions)

    plugins = table("Plugins")
    for plugin in report["plugins"]:
        mark = Text("ready", style="green") if plugin["available"] else Text("needs packages", style="yellow")
        remedy = "" if plugin["available"] else f"{', '.join(plugin['missing'])}: {plugin['install']}"
        plugins.add_row(Text(plugin["plugin"]), mark, Text(", ".join(plugin["offers"])), Text(remedy))
    for plugin in report["broken"]:
        plugins.add_row(Text(plugin["provider"]["plugin"]), Text("broken", style="red"), Text(plugin["error"]), Text(""))
    for name in report["disabled"]:
        plugins.add_row(Text(name), Text("disabled", style="dim"), Text("LUTHIER_DISABLE_PLUGINS"), Text(""))
    console.print(plugins)

    console.print()
    for problem in report["problems"]:
        console.print(Text.assemble(("problem  ", "red"), problem["problem"], "\n    fix: ", problem["fix"]))
    if report["ok"]:
        console.print(Text("The core works. Try: luthier demo", style="green"))


def _facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    machine, precision, cache = report["machine"], report["precision"], report["cache"]
    if machine is not None:
        yield "system", machine["platform"]
        yield "processor", f"{machine['cpu']}, {machine['cores']} cores to use, {size(machine['memory'])} memory"
        yield "device", _device(machine)
    for dtype, rate in (machine or {}).get("matmul", {}).items():
        yield f"products {dtype}", f"{rate['gflops']:.0f} GFLOP/s, relative error {rate['error']:.1e}"
    for case, decided in (precision or {}).items():
        yield f"precision, {case.replace('_', ' ')}", f"{decided['name']}: {decided['why']}"
    if cache is None:
        return
    state = "" if cache["writable"] else f", CANNOT BE WRITTEN: set {cache['variable']} to another folder"
    ready = f", ready: {', '.join(cache['models'])}" if cache["models"] else ", no model in it yet"
    yield "cache", f"{cache['folder']} ({size(cache['free'])} free{ready}{state})"


def _device(machine: Mapping[str, Any]) -> str:
    if machine["device"] == "cpu":
        return "cpu"
    capability = f", compute capability {'.'.join(map(str, machine['capability']))}" if machine["capability"] else ""
    count = f"{machine['device_count']} x " if machine["device_count"] > 1 else ""
    return f"{machine['device']}: {count}{machine['device_name']}, {size(machine['device_memory'])}{capability}"
