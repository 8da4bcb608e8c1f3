"""What the contract kit (`luthier.core.testing`) asks this installation for: its methods, its machine, a profile, a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier import api
from luthier.registry.catalog import discover
from luthier.registry.detect import detect
from luthier.registry.environment import read_environment

if TYPE_CHECKING:
    from luthier.core.catalog import Catalog
    from luthier.core.environment import Environment
    from luthier.core.plan import Plan
    from luthier.core.profile import ArchitectureProfile


def catalog() -> Catalog:
    """Every installed method."""
    return discover()


def environment() -> Environment:
    """This machine, without measuring its matrix products."""
    return read_environment(probe=False)


def profile(config: Any, catalog: Catalog) -> ArchitectureProfile:
    """The architecture that a transformers configuration describes."""
    return detect(config, families=[offer.value for offer in catalog.architectures])


def plan(config: Mapping[str, Any], catalog: Catalog, environment: Environment) -> Plan:
    """The plan of a run with the methods of `catalog`; raises PlanRefused."""
    return api.plan(config, catalog=catalog, environment=environment)
