"""What a description must be before the catalog takes it in: the checks on a plugin's own words.

A description of the wrong shape would otherwise surface much later, as an AttributeError in the middle of a run.
Every check here answers with a sentence for the plugin's author; none raises.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final

from luthier.core.contracts import (
    SLOTS,
    Adapter,
    AttentionKernel,
    DataKind,
    Method,
    ModelPatch,
    Numerics,
    OptimizerMethod,
    Phase,
    TrainingStage,
)
from luthier.core.extensions import BUILT_IN_VERBS, ArchitectureFamily, Command, DataFormat, Preset
from luthier.core.hookspecs import HOOKS
from luthier.core.profile import ROLES
from luthier.core.serial import hints_of
from luthier.core.traits import CLAIMS, TRAITS, AnyOf

# A name stands in YAML and on the command line, and `x.y` is how an option of a method is named.
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")
RESERVED: Final = ("auto", "use")
# The outline of PEP 508: a whole parser would cost every start of the command line 20 ms.
REQUIREMENT: Final = re.compile(
    r"[A-Za-z0-9][\w.-]*\s*(\[[^\]]*\])?\s*((===|==|~=|!=|<=|>=|<|>)\s*[\w.*+!-]+\s*(,\s*(?=[=~!<>])|(?=$|;)))*(;.*)?"
)

_CALLABLES: Final[dict[type[Any], tuple[str, ...]]] = {
    Method: ("declares", "supports", "load_options", "memory"),
    ModelPatch: ("apply",),
    Adapter: ("attach",),
    OptimizerMethod: ("build",),
    TrainingStage: ("run",),
    DataFormat: ("detect", "convert"),
    Command: ("run",),
}
_OPTIONAL_CALLABLES: Final[dict[type[Any], tuple[str, ...]]] = {
    ModelPatch: ("prepare",),
    Adapter: ("merge", "save", "load"),
    AttentionKernel: ("register",),
}


def area_of(value: object) -> str:
    """Where a description's name lives: its slot, "format", "architecture" or "command"; empty for no description."""
    if isinstance(value, Method):
        return value.slot
    if isinstance(value, Preset):
        return value.slot if isinstance(value.slot, str) else ""
    supporting = ((DataFormat, "format"), (ArchitectureFamily, "architecture"), (Command, "command"))
    return next((area for kind, area in supporting if isinstance(value, kind)), "")


def names_of(value: object) -> tuple[str, ...]:
    """Every "area: name" that a description occupies; an architecture family occupies each of its model types."""
    area = area_of(value)
    name = getattr(value, "name", None)
    if not area or not isinstance(name, str):
        return ()
    if isinstance(value, ArchitectureFamily) and isinstance(value.model_types, tuple):
        return tuple(f"{area}: {model_type}" for model_type in value.model_types)
    return (f"{area}: {name}",)


def describe_wrong_type(hook: str, value: object) -> str | None:
    """What is wrong when `hook` gave something that is not its kind of description."""
    expected = HOOKS[hook]
    assert expected is not None
    if isinstance(value, expected):
        return None
    home = next((name for name, kind in HOOKS.items() if kind is not None and isinstance(value, kind)), None)
    name = getattr(value, "name", None)
    named = f" {name!r}" if home and isinstance(name, str) else ""
    article = "an" if type(value).__name__[:1] in "AEIOU" else "a"
    message = f"{hook} gave {article} {type(value).__name__}{named}; it takes {expected.__name__} descriptions"
    return f"{message}: offer this one from {home}" if home else message


def problems_of(hook: str, value: object) -> list[str]:
    """Everything that is wrong with one description that came out of `hook`, as sentences that name it."""
    wrong = describe_wrong_type(hook, value)
    if wrong:
        return [wrong]
    label = f"{hook}: {type(value).__name__} {getattr(value, 'name', None)!r}"
    return [f"{label}: {problem}" for problem in _problems(value)]


def _problems(value: Any) -> Iterator[str]:
    yield from _name_problems(value)
    yield from _callable_problems(value)
    if isinstance(value, Method):
        yield from _method_problems(value)
    elif isinstance(value, Preset):
        yield from _preset_problems(value)
    elif isinstance(value, ArchitectureFamily):
        yield from _architecture_problems(value)
    if isinstance(value, DataFormat):
        yield from _choice(value.kind, DataKind, "kind")


def _name_problems(value: Any) -> Iterator[str]:
    if not isinstance(value.name, str) or not NAME.fullmatch(value.name):
        yield "a name is made of lower-case letters, digits, '-' and '_', and starts with a letter or digit"
    elif value.name in RESERVED:
        yield f"the name {value.name!r} has a meaning of its own in configuration files"
    elif isinstance(value, Command) and value.name in BUILT_IN_VERBS:
        yield f"{value.name!r} is a built-in verb, which no plugin can take"
    if not isinstance(value, ArchitectureFamily) and not (isinstance(value.summary, str) and value.summary.strip()):
        yield "the summary is empty: `luthier methods` shows it"


def _callable_problems(value: Any) -> Iterator[str]:
    for kind, names in _CALLABLES.items():
        if isinstance(value, kind):
            yield from (f"{name} is not callable" for name in names if not callable(getattr(value, name)))
    for kind, names in _OPTIONAL_CALLABLES.items():
        if isinstance(value, kind):
            found = ((name, getattr(value, name)) for name in names)
            yield from (f"{name} is not callable" for name, item in found if item is not None and not callable(item))


def _method_problems(method: Method[Any]) -> Iterator[str]:
    yield from config_problems(method.config)
    for field in ("provides", "conflicts"):
        yield from _vocabulary(getattr(method, field), field, TRAITS, "trait")
    yield from _vocabulary(method.claims, "claims", CLAIMS, "claim")
    if not isinstance(method.requires, tuple) or not all(isinstance(item, AnyOf) for item in method.requires):
        yield "requires must be a tuple of any_of(...)"
    else:
        for item in method.requires:
            yield from _vocabulary(item.traits, "requires", TRAITS, "trait")
    if not isinstance(method.packages, tuple) or not all(isinstance(item, str) for item in method.packages):
        yield "packages must be a tuple of requirement strings"
    else:
        yield from _requirement_problems(method.packages)
    yield from _choice(method.numerics, Numerics, "numerics")
    if not isinstance(method.priority, int):
        yield "priority must be a whole number"
    if isinstance(method, ModelPatch):
        yield from _choice(method.phase, Phase, "phase")
    if isinstance(method, TrainingStage):
        yield from _choice(method.data_kind, DataKind, "data_kind")
    if isinstance(method, AttentionKernel) and not (isinstance(method.implementation, str) and method.implementation):
        yield "implementation must name a key of transformers' AttentionInterface"


def config_problems(config: object) -> Iterator[str]:
    """A method's options are a frozen dataclass, keyword-only, whose annotations can be resolved."""
    if not isinstance(config, type) or not dataclasses.is_dataclass(config):
        yield f"config must be a frozen keyword-only dataclass, got {config!r}"
        return
    label, write = f"config {config.__name__}", "write @dataclass(frozen=True, kw_only=True)"
    if not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        yield f"{label} is not frozen: {write}"
    positional = [field.name for field in dataclasses.fields(config) if field.init and not field.kw_only]
    if positional:
        yield f"{label} is not keyword-only ({', '.join(positional)}): {write}"
    reserved = [field.name for field in dataclasses.fields(config) if field.name in RESERVED]
    if reserved:
        yield f"{label} has an option named {reserved[0]!r}, which is the key that holds the method's own name"
    try:
        hints_of(config)
    except Exception as error:  # annotations are arbitrary code of the plugin
        yield f"the annotations of {label} cannot be resolved: {type(error).__name__}: {error}"


def _vocabulary(words: object, field: str, known: Mapping[str, str], what: str) -> Iterator[str]:
    """Words under a prefix of the core's vocabulary must be in it: a misspelt trait would just never be met."""
    if not isinstance(words, frozenset) or not all(isinstance(word, str) for word in words):
        yield f"{field} must be a frozenset of strings, got {type(words).__name__}"
        return
    prefixes = {word.partition(".")[0] for word in known}
    for word in sorted(words - known.keys()):
        if "." not in word or word.startswith("."):
            yield f"{field}: the {what} {word!r} needs a prefix: write `<your plugin>.{word.strip('.')}`"
        elif word.partition(".")[0] in prefixes:
            near = difflib.get_close_matches(word, known, n=1)
            yield f"{field}: there is no {what} {word!r}" + (
                f"; did you mean {near[0]!r}?" if near else "; prefix your own differently"
            )


def _requirement_problems(packages: tuple[str, ...]) -> Iterator[str]:
    for package in packages:
        if not REQUIREMENT.fullmatch(package):
            yield f"packages: {package!r} is no requirement; write for example 'peft>=0.20'"


def _preset_problems(preset: Preset) -> Iterator[str]:
    if preset.slot not in SLOTS:
        yield f"there is no slot {preset.slot!r}; there are: {', '.join(SLOTS)}"
    elif not isinstance(preset.config, Mapping) or preset.slot not in preset.config:
        yield f"config must be a mapping that says which method stands in its own slot, `{preset.slot}`"


def _architecture_problems(family: ArchitectureFamily) -> Iterator[str]:
    types = family.model_types
    if not isinstance(types, tuple) or not types or not all(isinstance(item, str) for item in types):
        yield "model_types must be a tuple of model types"
    if not isinstance(family.roles, Mapping):
        yield "roles must be a mapping from role to module path"
        return
    for role in family.roles:
        if role not in ROLES:
            near = difflib.get_close_matches(str(role), ROLES, n=1)
            yield f"there is no role {role!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _choice(value: object, literal: Any, field: str) -> Iterator[str]:
    allowed = typing.get_args(literal)
    if value not in allowed:
        yield f"{field} is {value!r}; it is one of {', '.join(allowed)}"
