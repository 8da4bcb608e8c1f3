"""The documentation of option dataclasses as values: what `luthier explain` prints and docs/config.md is generated from."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any, Literal, TypeAlias

from luthier.core.config.schema import Choice
from luthier.core.config.types import dataclasses_in, type_text
from luthier.core.frozen import thaw
from luthier.core.options import BOUNDS, COMPARISONS, DOC, UNIT
from luthier.core.serial import hints_of, to_plain

Section: TypeAlias = type[Any]


@dataclass(frozen=True, kw_only=True)
class FieldDoc:
    """One option: everything that its dataclass says about it.

    `default` is JSON-shaped, and None where the option is required; `bounds` is a phrase ("at least 1"); `choices` are the
    words it takes where it takes only some; `section` is the dataclass of its own keys, where it has any, and `many` says
    that it is written as a list of them.
    """

    name: str
    type: str
    doc: str
    required: bool
    default: Any = None
    bounds: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    section: Section | None = None
    many: bool = False

    @property
    def default_text(self) -> str:
        """The default as a configuration file writes it: "required", a scalar, or a list."""
        if self.required:
            return "required"
        if self.section is not None and isinstance(self.default, dict):
            return "as below"
        return yaml_text(self.default)

    def to_plain(self) -> dict[str, Any]:
        """JSON-shaped, without the section's class."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "section"}
        return plain | {"choices": list(self.choices)}


def describe(cls: type) -> tuple[FieldDoc, ...]:
    """The fields of an option dataclass, in the order in which it declares them; inherited ones first."""
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is no dataclass")
    hints = hints_of(cls)
    return tuple(_describe_field(field, hints[field.name]) for field in dataclasses.fields(cls))


def walk(cls: type, prefix: str = "") -> Iterator[tuple[str, FieldDoc]]:
    """Every option with its dotted path, sections before what they hold; a list of sections counts as one."""
    for field in describe(cls):
        path = f"{prefix}.{field.name}" if prefix else field.name
        yield path, field
        if field.section is not None:
            yield from walk(field.section, path)


def yaml_text(value: Any) -> str:
    """A value on one line, as a configuration file writes it."""
    import yaml

    text: str = yaml.safe_dump(thaw(value), default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def sample(cls: type) -> dict[str, Any]:
    """Every option at its default, or those that the class names in SAMPLE; what has no default to show is `<name>`."""
    named = getattr(cls, "SAMPLE", None)
    if named is not None:
        return {option.name: option.default or f"<{option.name}>" for option in describe(cls) if option.name in named}
    return {option.name: sample_value(option) for option in describe(cls) if option.required or option.default is not None}


def sample_value(option: FieldDoc) -> Any:
    """The default of an option, or what stands for it in an example where it is required."""
    if not option.required:
        return option.default
    if option.section is None:
        return f"<{option.name}>"
    return [sample(option.section)] if option.many else sample(option.section)


def _describe_field(field: dataclasses.Field[Any], hint: Any) -> FieldDoc:
    sections = [section for section in dataclasses_in(hint) if section is not Choice]
    default, required = _default(field)
    bounds = ", ".join(f"{COMPARISONS[name][1]} {bound:g}" for name, bound in field.metadata.get(BOUNDS, {}).items())
    return FieldDoc(
        name=field.name,
        type=_type_text(hint),
        doc=field.metadata.get(DOC, ""),
        required=required,
        default=default,
        bounds=bounds,
        unit=field.metadata.get(UNIT, ""),
        choices=tuple(str(word) for word in _literals(hint)),
        section=sections[0] if sections else None,
        many=bool(sections) and any(typing.get_origin(part) is tuple for part in (hint, *typing.get_args(hint))),
    )


def _type_text(hint: Any) -> str:
    if Choice not in dataclasses_in(hint):
        return type_text(hint)
    text = "a name, {use: name, ...options}, or auto"
    return text if hint is Choice else f"{text}; or a list of names and {{use: name, ...options}}"


def _literals(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Literal:
        yield from typing.get_args(hint)
        return
    for argument in typing.get_args(hint):
        yield from _literals(argument)


def _default(field: dataclasses.Field[Any]) -> tuple[Any, bool]:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return None, True
    return to_plain(value), False
