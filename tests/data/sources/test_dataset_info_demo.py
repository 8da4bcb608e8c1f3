"""The dataset_info.json that comes with LLaMA-Factory's demo data: every entry is used, or refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.config.schema import DataConfig, SourceConfig
from luthier.core.data.sources import open_rows, resolve_sources
from luthier.core.errors import DataError

DEMO = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(not (DEMO / "dataset_info.json").is_file(), reason="the demo data is not here")


def resolved(name: str) -> SourceConfig:
    return resolve_sources(DataConfig(train=(SourceConfig(dataset=name),), dataset_info=str(DEMO))).train[0]


def expected_format(entry: dict[str, Any]) -> str:
    """By the description in LLaMA-Factory's data/README.md."""
    columns = entry.get("columns", {})
    if entry.get("ranking"):
        return "ranking"
    if "kto_tag" in columns:
        return "unpaired"
    if entry.get("formatting", "alpaca") != "alpaca":
        return "sharegpt"
    return "text" if "prompt" in columns and "response" not in columns else "alpaca"


def test_every_entry() -> None:
    entries = json.loads((DEMO / "dataset_info.json").read_text(encoding="utf-8"))
    assert len(entries) > 90
    for name, entry in entries.items():
        media = next((key for key in ("images", "videos", "audios") if key in entry.get("columns", {})), None)
        missing = "file_name" in entry and not (DEMO / entry["file_name"]).exists()
        if media or missing or not {"file_name", "hf_hub_url"} & set(entry):
            with pytest.raises(DataError) as caught:
                resolved(name)
            key = f"columns.{media}" if media else "file_name" if missing else "ms_hub_url"
            assert caught.value.where == f"{DEMO / 'dataset_info.json'}, {name}, {key}"
            continue
        source = resolved(name)
        assert source.format.use == expected_format(entry), name
        assert dict(source.format.options) == entry.get("tags", {})
        assert set(source.columns.values()) <= set(entry.get("columns", {}).values())
        if "folder" in entry:
            assert source.path == f"hf://datasets/{entry['hf_hub_url']}/{entry['folder']}"
        elif "hf_hub_url" in entry:
            assert (source.hub, source.split) == (entry["hf_hub_url"], entry.get("split", "train"))
            assert source.subset == entry.get("subset")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("identity", 91),
        ("alpaca_en_demo", 999),
        ("glaive_toolcall_en_demo", 300),
        ("dpo_en_demo", 300),
        ("wiki_demo", 30),
        ("c4_demo", 300),
    ],
)
def test_files_that_are_here(name: str, rows: int) -> None:
    source = open_rows(resolved(name))
    path = Path(resolved(name).path or "")
    text = path.read_text(encoding="utf-8")
    by_hand = len(json.loads(text)) if path.suffix == ".json" else len([line for line in text.split("\n") if line.strip()])
    assert source.count() == by_hand == rows
    read = list(source.rows())
    assert len(read) == rows
    assert [row.where for row in source.rows(rows - 2)] == [row.where for row in read[-2:]]
