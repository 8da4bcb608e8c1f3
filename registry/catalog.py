"""Discovery of plugins: entry points in, a Catalog out, whatever state the plugins are in.

Our own over `importlib.metadata`, because pluggy's loader silently skips the second plugin of one name. Each plugin gets
a PluginManager of its own, so that one broken plugin stays one broken plugin: it is listed with its error, and raises
only when the configuration selects it. Entry points are sorted first: nothing depends on the order of installation.

    entry points -> by name -> load one -> check its hooks -> call them -> check each description -> by name -> Catalog
                       |          |              |                |                  |                  |
                       +----------+--------------+----------------+------------------+------------------+--> broken
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from typing import Any, Final

from luthier.core.catalog import BrokenPlugin, Catalog, Offer, Provider
from luthier.core.contracts import SLOTS, Method
from luthier.core.errors import PluginError
from luthier.core.extensions import ArchitectureFamily, Command, DataFormat, Preset
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import ENTRY_POINT_GROUP
from luthier.registry.descriptions import names_of
from luthier.registry.plugin import Found, load_plugin

STRICT: Final = "LUTHIER_STRICT_PLUGINS"
DISABLE: Final = "LUTHIER_DISABLE_PLUGINS"

logger = logging.getLogger(__name__)


def discover(
    entry_points: Iterable[EntryPoint] | None = None,
    *,
    strict: bool | None = None,
    disabled: Iterable[str] | None = None,
) -> Catalog:
    """The catalog of what is installed, broken plugins kept aside with their error.

    `entry_points` default to the installed ones of the group `luthier.plugins`; `strict` to LUTHIER_STRICT_PLUGINS=1, which
    raises PluginError when anything is broken; `disabled` to LUTHIER_DISABLE_PLUGINS=a,b, plugins that are not even
    imported. What a plugin prints while it is imported goes to standard error.
    """
    points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP) if entry_points is None else entry_points
    strict = os.environ.get(STRICT, "0") not in ("", "0") if strict is None else strict
    off = {name.strip() for name in (os.environ.get(DISABLE, "").split(",") if disabled is None else disabled)} - {""}

    provided = sorted(_with_providers(points), key=lambda pair: _order(pair[0]))
    installed = {provider.plugin for provider, _ in provided}
    for name in sorted(off - installed):
        logger.warning("%s names %r, which is no installed plugin", DISABLE, name)
    with contextlib.redirect_stdout(sys.stderr):
        found = [load_plugin(provider, point) for provider, point in provided if provider.plugin not in off]
    _set_aside_same_plugins(found)
    catalog = _assemble(found, tuple(sorted(off & installed)))
    if strict and catalog.broken:
        raise _strict_error(catalog.broken)
    return catalog


def _with_providers(points: Iterable[EntryPoint]) -> Iterator[tuple[Provider, EntryPoint]]:
    # Each access to `metadata` reads and parses the file again: once per distribution is enough.
    known: dict[int, tuple[str, str]] = {}
    for point in points:
        distribution = point.dist
        if distribution is None:
            yield Provider(plugin=point.name, target=point.value), point
            continue
        if id(distribution) not in known:
            metadata = distribution.metadata
            known[id(distribution)] = metadata["Name"], metadata["Version"]
        name, version = known[id(distribution)]
        yield Provider(plugin=point.name, distribution=name, version=version, target=point.value), point


def _order(provider: Provider) -> tuple[str, str, str, str]:
    return provider.plugin, provider.distribution, provider.version, provider.target


def _set_aside_same_plugins(found: list[Found]) -> None:
    """Two plugins of one entry-point name: which of them a user would mean is unknowable, so neither is taken."""
    by_name: defaultdict[str, list[Found]] = defaultdict(list)
    for plugin in found:
        by_name[plugin.provider.plugin].append(plugin)
    for name, same in by_name.items():
        if len(same) > 1:
            who = " and ".join(_who(plugin.provider) for plugin in same)
            for plugin in same:
                plugin.errors.insert(0, f"more than one plugin is named {name!r}: {who}; uninstall all but one")


def _assemble(found: list[Found], disabled: tuple[str, ...]) -> Catalog:
    broken = [plugin.broken() for plugin in found if plugin.errors]
    working = [plugin for plugin in found if not plugin.errors]
    offers = [Offer(value=value, provider=plugin.provider) for plugin in working for value in plugin.values]
    taken: defaultdict[str, list[Offer[Any]]] = defaultdict(list)
    for offer in offers:
        for name in names_of(offer.value):
            taken[name].append(offer)
    contested: set[int] = set()
    for name, rivals in sorted(taken.items()):
        if len(rivals) > 1:
            contested.update(map(id, rivals))
            broken += _name_taken_twice(name, rivals)
    kept = sorted((offer for offer in offers if id(offer) not in contested), key=lambda offer: offer.value.name)
    return Catalog(
        methods=FrozenDict({slot: _by_name(kept, Method, slot) for slot in SLOTS}),
        presets=FrozenDict({slot: _by_name(kept, Preset, slot) for slot in SLOTS}),
        formats=_by_name(kept, DataFormat),
        commands=_by_name(kept, Command),
        architectures=tuple(offer for offer in kept if isinstance(offer.value, ArchitectureFamily)),
        observers=tuple(
            Offer(value=plugin.observer, provider=plugin.provider) for plugin in working if plugin.observer is not None
        ),
        broken=tuple(sorted(broken, key=lambda item: (*_order(item.provider), item.error))),
        disabled=disabled,
    )


def _name_taken_twice(name: str, rivals: list[Offer[Any]]) -> Iterator[BrokenPlugin]:
    """One entry per provider; its other names stay usable."""
    area, _, word = name.partition(": ")
    providers = list(dict.fromkeys(offer.provider for offer in rivals))
    if len(providers) == 1:
        error = f"{_who(providers[0])} offers {area} {word!r} {len(rivals)} times"
    else:
        error = f"{area} {word!r} is offered by {' and '.join(map(_who, providers))}; uninstall or disable all but one"
    # A family that lost one model type is set aside as a whole: the others it names are lost with it.
    for provider in providers:
        lost = {name for offer in rivals if offer.provider == provider for name in names_of(offer.value)}
        yield BrokenPlugin(provider=provider, error=error, names=tuple(sorted(lost)))


def _by_name(offers: list[Offer[Any]], kind: type[Any], slot: str | None = None) -> FrozenDict[str, Offer[Any]]:
    chosen = (
        offer for offer in offers if isinstance(offer.value, kind) and slot in (None, getattr(offer.value, "slot", None))
    )
    return FrozenDict({offer.value.name: offer for offer in chosen})


def _strict_error(broken: tuple[BrokenPlugin, ...]) -> PluginError:
    lines = [f"{item.provider.plugin} ({item.provider}): {item.error}" for item in broken]
    error = PluginError(
        "broken plugins:\n  " + "\n  ".join(lines),
        where=f"{STRICT}=1",
        fix="repair or uninstall them, or unset the variable",
    )
    for item in broken:
        if item.trace:
            error.add_note(item.trace)
    return error


def _who(provider: Provider) -> str:
    return f"{provider} ({provider.target})" if provider.target else str(provider)
