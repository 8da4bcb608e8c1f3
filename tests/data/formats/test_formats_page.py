"""docs/data/formats.md: every built-in format has a section, and the rows it shows have that format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.core.catalog import Offer
from luthier.core.config.schema import Choice, SourceConfig
from luthier.core.data.formats import open_source
from luthier.core.extensions import DataFormat
from luthier.registry.catalog import discover

PAGE = Path(__file__).parents[3] / "docs" / "data" / "formats.md"
NAMED = {"transcript"}  # formats that are taken by name only


def sections() -> dict[str, str]:
    """The text under each heading "### `name`" of the page's second half."""
    half = PAGE.read_text(encoding="utf-8").split("\n## The formats\n", 1)[1]
    parts = re.split(r"^### `(\w+)`$", half, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def shown() -> Iterator[Any]:
    for name, text in sections().items():
        for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for number, line in enumerate(block.splitlines(), 1):
                yield pytest.param(name, json.loads(line), id=f"{name}-{number}")


@pytest.fixture(scope="module")
def built_in() -> Mapping[str, Offer[DataFormat]]:
    formats = discover(disabled=()).formats
    return {name: offer for name, offer in formats.items() if offer.provider.distribution == "luthier"}


@pytest.mark.parametrize(("name", "row"), list(shown()))
def test_a_row_that_is_shown_has_the_format(
    name: str, row: dict[str, Any], built_in: Mapping[str, Offer[DataFormat]], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    source = SourceConfig(path=str(path), format=Choice(use=name) if name in NAMED else Choice())
    opened = open_source(source, built_in)
    assert opened.format.value.name == name
    (only,) = opened.rows.rows()
    assert opened.convert(only)


def test_every_format_has_a_section_with_its_facts(built_in: Mapping[str, Offer[DataFormat]]) -> None:
    found = sections()
    assert found.keys() == built_in.keys()
    for name, text in found.items():
        assert f"<!-- format:begin {name} -->" in text
        assert "```json" in text, name
