"""The documentation of option dataclasses as values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from luthier.core.config.reference import describe, sample, walk, yaml_text
from luthier.core.config.schema import RunConfig
from luthier.core.options import option


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section."""

    size: int = option(doc="How big.", gt=0)
    note: str | None = option(None, "A word.")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Every form of option there is."""

    rate: float = option(1e-4, "How fast.", gt=0, le=1, unit="per step")
    kind: Literal["a", "b"] | None = option(None, "Which.")
    roles: tuple[str, ...] = option(("attn", "mlp"), "Where.")
    part: Part = option(Part(size=3), "One section.")
    parts: tuple[Part, ...] = option(doc="Sections.")
    either: float | tuple[Part, ...] = option(0.5, "A number, or sections.")
    plain: bool = False


def test_fields_say_what_the_dataclass_says() -> None:
    fields = {field.name: field for field in describe(Whole)}
    rate = fields["rate"]
    assert (rate.type, rate.default, rate.required) == ("a number", 1e-4, False)
    assert (rate.bounds, rate.unit, rate.doc) == ("greater than 0, at most 1", "per step", "How fast.")
    assert (fields["kind"].type, fields["kind"].choices) == ("one of a, b or null", ("a", "b"))
    assert (fields["roles"].default, fields["roles"].default_text) == (["attn", "mlp"], "[attn, mlp]")
    assert (fields["part"].section, fields["part"].many, fields["part"].default_text) == (Part, False, "as below")
    assert (fields["parts"].section, fields["parts"].many, fields["parts"].required) == (Part, True, True)
    assert (fields["either"].section, fields["either"].many, fields["either"].default) == (Part, True, 0.5)
    assert (fields["plain"].type, fields["plain"].default_text, fields["plain"].doc) == ("true or false", "false", "")
    assert list(fields) == ["rate", "kind", "roles", "part", "parts", "either", "plain"]
    json.dumps([field.to_plain() for field in fields.values()])


def test_walk_gives_dotted_paths() -> None:
    paths = [path for path, _ in walk(Whole)]
    assert paths[3:6] == ["part", "part.size", "part.note"]
    assert "parts.size" in paths


def test_sample_is_the_defaults_with_what_is_required_marked() -> None:
    assert sample(Part) == {"size": "<size>"}
    assert sample(Whole)["parts"] == [{"size": "<size>"}]
    assert sample(Whole)["part"] == {"size": 3, "note": None}


def test_every_key_of_a_configuration_is_documented() -> None:
    assert not [path for path, field in walk(RunConfig) if not field.doc]


def test_what_is_no_dataclass_is_refused() -> None:
    with pytest.raises(TypeError, match="no dataclass"):
        describe(int)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), ("auto", "auto"), ([1, "a"], "[1, a]"), (2, "2")]
)
def test_yaml_text(value: object, text: str) -> None:
    assert yaml_text(value) == text
