"""The installation around a method under test: the methods beside it, the machine, detection, planning.

The core imports nothing of ours, and what brings methods and models together is the front door. So the kit is handed it as
a value, like everything that the core is given; a contract whose `surroundings` is set to something else uses that.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Protocol, cast

from luthier.core.catalog import Catalog
from luthier.core.environment import Environment
from luthier.core.plan import Plan
from luthier.core.profile import ArchitectureProfile

FRONT_DOOR: Final = "luthier.testing"


class Surroundings(Protocol):
    """What the kit asks for; `luthier.testing` is it for an installation."""

    def catalog(self) -> Catalog: ...

    def environment(self) -> Environment: ...

    def profile(self, config: Any, catalog: Catalog) -> ArchitectureProfile: ...

    def plan(self, config: Mapping[str, Any], catalog: Catalog, environment: Environment) -> Plan: ...


@cache
def installed() -> Surroundings:
    """This installation, found by name when a test asks for it: the one place where the arrow of imports is turned round."""
    return cast(Surroundings, importlib.import_module(FRONT_DOOR))


@cache
def installed_catalog() -> Catalog:
    """The installed methods, discovered once for all contracts of a session."""
    return installed().catalog()


@cache
def this_machine() -> Environment:
    return installed().environment()
