"""Whether what a method needs is installed, told from package metadata alone, and the command that would install it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

DISTRIBUTION: Final = "luthier"
# Extras that are about working on Luthier, not with it.
DEVELOPMENT: Final = frozenset({"dev", "docs"})


def missing_packages(requirements: Iterable[str], packages: Mapping[str, str]) -> list[str]:
    """The requirements (PEP 508) that `packages` (canonical name to version) does not meet, as they were written.

    A requirement whose marker is not true of this machine is met. Raises ValueError for text that is no requirement.
    """
    return [text for text in requirements if not _is_met(text, packages)]


def why_missing(requirement: str, packages: Mapping[str, str]) -> str:
    """One unmet requirement in words: "bitsandbytes>=0.49 (not installed)", "trl>=1.14 (found 1.10.0)"."""
    found = packages.get(canonicalize_name(_parse(requirement).name))
    return f"{requirement} ({f'found {found}' if found else 'not installed'})"


def install_command(missing: Sequence[str]) -> str:
    """What to type for these requirements: Luthier's own extra where one brings them all, else their names."""
    names = {canonicalize_name(_parse(text).name) for text in missing}
    extra = next((extra for extra, brought in extras().items() if names <= brought), None)
    if not names:
        return ""
    wanted = [f"{DISTRIBUTION}[{extra}]"] if extra else missing
    return "pip install " + " ".join(f'"{text}"' for text in wanted)


def extras() -> dict[str, set[str]]:
    """The canonical names of the packages that each of Luthier's extras brings, the smallest extras first."""
    brought: dict[str, set[str]] = {}
    for text in own_requirements():
        requirement = _parse(text)
        if requirement.marker is None:
            continue
        for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
            if extra not in DEVELOPMENT and requirement.marker.evaluate({"extra": extra}):
                brought.setdefault(extra, set()).add(canonicalize_name(requirement.name))
    return dict(sorted(brought.items(), key=lambda item: len(item[1])))


def core_requirements() -> list[str]:
    """What Luthier itself cannot do without; empty when it runs from a folder that was never installed."""
    unconditional = [_parse(text) for text in own_requirements()]
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement in unconditional
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    ]


def own_requirements() -> list[str]:
    """Everything that Luthier's metadata requires, extras included."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def _parse(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r} is no package requirement: {error}") from error


def _is_met(text: str, packages: Mapping[str, str]) -> bool:
    requirement = _parse(text)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return True
    found = packages.get(canonicalize_name(requirement.name))
    if found is None:
        return False
    try:
        # A version that is installed counts even where it is a pre-release: whoever installed it chose it.
        return requirement.specifier.contains(Version(found), prereleases=True)
    except InvalidVersion:
        return not requirement.specifier
