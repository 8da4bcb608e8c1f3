"""A row of each public data set of docs/data/datasets.yaml, through detection, conversion and the canonical check.

The rows are made up, with the columns and types that the data sets have; what becomes of each is written beside it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.catalog import Offer
from luthier.core.config import load_config as read_config
from luthier.core.config.schema import Choice, SourceConfig
from luthier.core.data.formats import BadRow, OpenSource, open_source
from luthier.core.extensions import DataFormat
from luthier.core.frozen import FrozenDict
from luthier.registry.catalog import discover

SOURCE = Path(__file__).parents[3] / "docs" / "data" / "datasets.yaml"
KNOWN: dict[str, list[dict[str, Any]]] = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
KINDS = {
    "Instructions": "conversation",
    "Prompts and completions": "conversation",
    "Conversations": "conversation",
    "Questions and answers": "conversation",
    "Multiple choice": "conversation",
    "Summaries and translations": "conversation",
    "Raw text": "text",
    "Preferences": "preference",
    "Answers with a label": "unpaired",
    "Prompts": "prompt",
}
SETS = [pytest.param(group, item, id=item["name"]) for group, items in KNOWN.items() for item in items]
Open = Callable[..., OpenSource]


@pytest.fixture(scope="module")
def built_in() -> Mapping[str, Offer[DataFormat]]:
    """Every format that is installed with luthier: detection is among all of them."""
    formats = discover(disabled=()).formats
    return {name: offer for name, offer in formats.items() if offer.provider.distribution == "luthier"}


@pytest.fixture
def opened(built_in: Mapping[str, Offer[DataFormat]], tmp_path: Path) -> Open:
    """`opened(item)`: its row in a file, opened as the table says; with `named=False` without format and columns."""

    def open_item(item: dict[str, Any], *, named: bool = True) -> OpenSource:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(item["row"], ensure_ascii=False) + "\n", encoding="utf-8")
        written = {"hub": item["name"], **item.get("write", {})}
        source = read_config({"model": "tiny", "data": {"train": [written]}}).data.train[0]
        local: dict[str, Any] = {"hub": None, "subset": None, "split": "train", "path": str(path)}
        if not named:
            local |= {"format": Choice(), "columns": FrozenDict()}
        return open_source(dataclasses.replace(source, **local), built_in)

    return open_item


@pytest.mark.parametrize(("group", "item"), SETS)
def test_a_row_becomes_what_the_table_says(group: str, item: dict[str, Any], opened: Open) -> None:
    source = opened(item)
    assert (source.format.value.name, source.kind) == (item["format"], KINDS[group])
    (row,) = source.rows.rows()
    assert told(source.kind, source.convert(row)) == item["expect"]


@pytest.mark.parametrize("item", [pytest.param(item, id=item["name"]) for items in KNOWN.values() for item in items])
def test_without_naming_anything_one_format_is_found_or_none(item: dict[str, Any], opened: Open) -> None:
    """Never two: a row that fits several formats would be an error, whatever the table says to write."""
    otherwise = item.get("otherwise", item["format"])
    if otherwise == "error":
        with pytest.raises(BadRow):
            opened(item, named=False)
    elif "otherwise" in item or "columns" not in item.get("write", {}):
        assert opened(item, named=False).format.value.name == otherwise


def test_the_table() -> None:
    names = [item["name"] for items in KNOWN.values() for item in items]
    assert len(names) == len(set(names)) >= 50
    assert not [name for name in names if not re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    assert list(KNOWN) == list(KINDS)
    fields = {field.name for field in dataclasses.fields(SourceConfig)}
    for items in KNOWN.values():
        for item in items:
            assert item.keys() <= {"name", "row", "more", "format", "write", "otherwise", "note", "expect"}, item["name"]
            assert item.get("write", {}).keys() <= fields, item["name"]


def told(kind: str, canonical: Mapping[str, Any]) -> dict[str, Any]:
    """What a canonical row says, in the words of the table: the last thing asked, the answer, and what else there is."""
    if kind == "text":
        return dict(canonical)
    messages = list(canonical["messages"])
    says: dict[str, Any] = {}
    if messages[0]["role"] == "system":
        says["system"] = messages[0]["content"]
    answers = list(canonical.get("chosen") or canonical.get("completion") or ())
    if kind == "conversation" and not answers:
        answers = [messages.pop()]
    assert all(message["role"] == "assistant" for message in answers)
    says["user"] = messages[-1]["content"]
    if answers:
        says["answer"] = answers[-1]["content"]
        if answers[-1].get("reasoning_content"):
            says["reasoning"] = answers[-1]["reasoning_content"]
    if "rejected" in canonical:
        says["rejected"] = canonical["rejected"][-1]["content"]
    return says | {key: canonical[key] for key in ("margin", "label", "reference") if key in canonical}
