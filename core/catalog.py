"""The catalog as a value: which methods are installed, and which plugins are broken, with their error.

The registry builds it from entry points (`luthier.registry.discover`); the resolver and the command line read it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from luthier.core.contracts import SLOTS, AnyMethod
from luthier.core.errors import ConfigError, PluginError
from luthier.core.extensions import ArchitectureFamily, Command, DataFormat, Preset, RunEvent
from luthier.core.frozen import FrozenDict

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Who brings a description: the entry point's name, its distribution and version, and the object it names."""

    plugin: str
    distribution: str = ""
    version: str = ""
    target: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip() or self.plugin


@dataclass(frozen=True, kw_only=True)
class Offer(Generic[T]):
    """One description together with who brings it."""

    value: T
    provider: Provider


@dataclass(frozen=True, kw_only=True)
class BrokenPlugin:
    """A plugin, or one name of it, that cannot be used.

    `error` is the message for the user; `names` are the names known to be lost with it, as "area: name", where the area is
    a slot (methods and presets), "format", "architecture" or "command"; `trace` is shown with `--debug`.
    """

    provider: Provider
    error: str
    names: tuple[str, ...] = ()
    trace: str = ""


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that the installed plugins offer, by slot and name."""

    methods: Mapping[str, Mapping[str, Offer[AnyMethod]]] = field(default_factory=FrozenDict)
    presets: Mapping[str, Mapping[str, Offer[Preset]]] = field(default_factory=FrozenDict)
    formats: Mapping[str, Offer[DataFormat]] = field(default_factory=FrozenDict)
    architectures: tuple[Offer[ArchitectureFamily], ...] = ()
    commands: Mapping[str, Offer[Command]] = field(default_factory=FrozenDict)
    observers: tuple[Offer[Callable[[RunEvent], None]], ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()
    disabled: tuple[str, ...] = ()

    def slot(self, slot: str) -> Mapping[str, Offer[AnyMethod]]:
        """The methods of a slot by name."""
        return self.methods.get(slot, {})

    def find(self, name: str) -> Iterator[tuple[str, Offer[AnyMethod]]]:
        """Every slot that has a method of this name."""
        for slot in SLOTS:
            if name in self.slot(slot):
                yield slot, self.slot(slot)[name]

    def method(self, slot: str, name: str) -> AnyMethod:
        """One method; raises PluginError with the plugin's own error when it is broken, ConfigError when unknown."""
        if name in self.slot(slot):
            return self.slot(slot)[name].value
        raise self._refusal(slot, name, self.unknown(slot, name))

    def data_format(self, name: str) -> DataFormat:
        """One data format; raises PluginError when its plugin is broken, ConfigError when unknown."""
        if name in self.formats:
            return self.formats[name].value
        raise self._refusal("format", name, self._unknown("data format", name, self.formats))

    def command(self, name: str) -> Command:
        """One verb that a plugin adds; raises PluginError when the plugin is broken, ConfigError when unknown."""
        if name in self.commands:
            return self.commands[name].value
        raise self._refusal("command", name, self._unknown("command", name, self.commands))

    def require_architecture(self, model_type: str) -> None:
        """Raises PluginError where a broken plugin has a family for this model type: detection alone may see it wrongly."""
        title = f"architecture: {model_type}"
        for broken in self.broken:
            if title in broken.names:
                plugin = broken.provider.plugin
                fix = f"repair or remove it, or set LUTHIER_DISABLE_PLUGINS={plugin} to go without its description"
                raise self._broken_error(broken, fix)

    def _refusal(self, area: str, name: str, unknown: str) -> PluginError | ConfigError:
        broken = self.broken_for(area, name)
        if broken is None:
            return ConfigError(unknown, where=area)
        return self._broken_error(broken)

    def _broken_error(self, broken: BrokenPlugin, fix: str = "") -> PluginError:
        error = PluginError(broken.error, where=f"plugin {broken.provider.plugin} ({broken.provider})", fix=fix)
        if broken.trace:
            error.add_note(broken.trace)
        return error

    def broken_for(self, slot: str, name: str) -> BrokenPlugin | None:
        """The broken plugin that this name probably belongs to: one that lost it, or one that is called so.

        `slot` is a slot, or "format", "architecture" or "command".
        """
        for broken in self.broken:
            if f"{slot}: {name}" in broken.names:
                return broken
        return next((broken for broken in self.broken if broken.provider.plugin == name), None)

    def unknown(self, slot: str, name: str) -> str:
        """The message for a name that nobody offers in this slot, with the nearest names that exist."""
        elsewhere = [
            other for other in SLOTS if other != slot and (name in self.slot(other) or name in self.presets.get(other, {}))
        ]
        if elsewhere:
            return f"there is no {slot} method named {name!r}; {name!r} belongs under `{elsewhere[0]}`"
        return self._unknown(f"{slot} method", name, {*self.slot(slot), *self.presets.get(slot, {})})

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> str:
        message = f"there is no {what} named {name!r}"
        if name in self.disabled:
            return f"{message}: the plugin {name!r} is switched off by LUTHIER_DISABLE_PLUGINS"
        names = sorted(known)
        by_lower = {known.lower(): known for known in names}
        near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
        if near:
            return f"{message}; did you mean {by_lower[near[0]]!r}?"
        message = f"{message}; there are: {', '.join(names) or 'none'}"
        if self.broken:
            plugins = sorted({f"{broken.provider.plugin} ({broken.provider})" for broken in self.broken})
            message += f". Broken plugins, which may have offered it: {', '.join(plugins)}"
        return message

    def providers_of(self, trait: str) -> list[tuple[str, str]]:
        """(slot, name) of every method that declares to provide this trait whatever its options."""
        return [
            (slot, name)
            for slot in SLOTS
            for name, offer in sorted(self.slot(slot).items())
            if trait in offer.value.provides
        ]

    def offers(self) -> Iterator[tuple[str, Offer[Any]]]:
        """Every method with its slot, in slot order, then by name."""
        for slot in SLOTS:
            for _, offer in sorted(self.slot(slot).items()):
                yield slot, offer
