"""From a configuration, a profile, a machine and a catalog to a plan, or to every reason why there is none."""

from luthier.core.resolve.resolver import resolve

__all__ = ["resolve"]
