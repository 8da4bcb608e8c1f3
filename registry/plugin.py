"""One plugin, loaded and checked: what it offers, or everything that is wrong with it."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any, Final

import pluggy

from luthier.core.catalog import BrokenPlugin, Provider
from luthier.core.extensions import RunEvent
from luthier.core.hookspecs import HOOKS, PROJECT, HookSpecs
from luthier.registry.descriptions import names_of, problems_of

PREFIX: Final = f"{PROJECT}_"
MARK: Final = f"{PROJECT}_impl"

Observer = Callable[[RunEvent], None]
# A plugin may call sys.exit() while it is imported; Ctrl-C still belongs to the user.
FAILURES: Final = (Exception, SystemExit)


@dataclass
class Found:
    """What one plugin was found to offer, or what is wrong with it."""

    provider: Provider
    values: list[Any] = field(default_factory=list)
    observer: Observer | None = None
    errors: list[str] = field(default_factory=list)
    trace: str = ""
    names: set[str] = field(default_factory=set)

    def fail(self, message: str, error: BaseException | None = None) -> None:
        self.errors.append(message)
        if error is not None:
            self.trace += "".join(traceback.format_exception(error))

    def broken(self) -> BrokenPlugin:
        names = self.names.union(*map(names_of, self.values))
        return BrokenPlugin(
            provider=self.provider, error="; ".join(self.errors), names=tuple(sorted(names)), trace=self.trace
        )


def load_plugin(provider: Provider, point: EntryPoint) -> Found:
    """Load one plugin, check its hooks and take its descriptions."""
    found = Found(provider)
    try:
        target = point.load()
    except FAILURES as error:
        found.fail(f"importing {point.value} failed: {_text(error)}", error)
        return found
    try:
        manager = _register(target, found)
        for hook in HOOKS:
            _call(manager, hook, found)
    except FAILURES as error:  # e.g. an entry point object whose attributes cannot be read
        found.fail(f"reading {point.value} failed: {_text(error)}", error)
    if found.errors:
        found.names |= _salvage(target)
    return found


def _register(target: object, found: Found) -> pluggy.PluginManager:
    """A manager that knows this plugin only; every hook that nobody would ever call is an error of the plugin."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    if target is None or isinstance(target, type):
        found.fail(f"the entry point {found.provider.target!r} must name a module or an object, not {target!r}")
        return manager
    try:
        manager.register(target, name=found.provider.plugin)
    except pluggy.PluginValidationError as error:
        found.fail(" ".join(str(error).split()))
        manager.unregister(name=found.provider.plugin)
        return manager
    implemented = 0
    for caller in manager.get_hookcallers(target) or ():
        implementations = caller.get_hookimpls()
        implemented += len(implementations)
        if any(implementation.wrapper or implementation.hookwrapper for implementation in implementations):
            found.fail(f"{caller.name} is a hook wrapper: a plugin offers its own methods and cannot change another's")
        if not caller.has_spec() and not all(implementation.optionalhook for implementation in implementations):
            found.fail(f"there is no hook {caller.name}{_did_you_mean(caller.name)}")
    if not found.errors:
        manager.check_pending()
    unmarked = [name for name, function in _routines(target) if not hasattr(function, MARK)]
    for name in unmarked:
        hint = "" if name in HOOKS else _did_you_mean(name)
        found.fail(f"{name} is not marked with @hookimpl of luthier.core.hookspecs, so nobody would call it{hint}")
    if not implemented and not unmarked:
        found.fail(f"{found.provider.target} has no function marked with @hookimpl")
    return manager


def _call(manager: pluggy.PluginManager, hook: str, found: Found) -> None:
    caller = getattr(manager.hook, hook)
    implementations = caller.get_hookimpls()
    if not implementations or any(item.wrapper or item.hookwrapper for item in implementations):
        return
    if HOOKS[hook] is None:
        found.observer = _observer(caller)
        return
    expected = HOOKS[hook].__name__  # type: ignore[union-attr]
    try:
        results = caller()
        if not results:
            found.fail(f"{hook} returned None; it returns or yields {expected} descriptions")
            return
        for value in _iterate(results[0], hook, expected):
            problems = problems_of(hook, value)
            found.errors += problems
            if problems:
                found.names.update(names_of(value))
            else:
                found.values.append(value)
    except FAILURES as error:
        found.fail(f"{hook} failed: {_text(error)}", error)


def _iterate(result: object, hook: str, expected: str) -> Iterator[object]:
    if isinstance(result, str) or not isinstance(result, Iterable):
        raise TypeError(f"{hook} must return an iterable of {expected}, returned {type(result).__name__}")
    yield from result


def _observer(caller: Any) -> Observer:
    def observe(event: RunEvent) -> None:
        caller(event=event)

    return observe


def _routines(target: object) -> Iterator[tuple[str, Any]]:
    for name in dir(target):
        if name.startswith(PREFIX):
            function = inspect.getattr_static(target, name)
            if inspect.isroutine(function):
                yield name, function


def _salvage(target: object) -> set[str]:
    """The names that a broken plugin would have offered, as far as its own hooks still tell.

    Only so that a configuration that selects one of them is answered with the plugin's error; what goes wrong on the way
    is part of the error that is already recorded.
    """
    names: set[str] = set()
    if target is None or isinstance(target, type):
        return names
    for name in dir(target):
        marked = inspect.getattr_static(target, name)
        if not inspect.isroutine(marked) or not (name.startswith(PREFIX) or hasattr(marked, MARK)):
            continue
        with contextlib.suppress(*FAILURES):
            for value in getattr(target, name)():
                names.update(names_of(value))
    return names


def _text(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    return f"{type(error).__name__}: {error}"


def _did_you_mean(name: str) -> str:
    candidate = name if name.startswith(PREFIX) else PREFIX + name
    near = difflib.get_close_matches(candidate, HOOKS, n=1)
    return f"; did you mean {near[0]}?" if near else ""
