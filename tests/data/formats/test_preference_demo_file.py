"""The preference file among LLaMA-Factory's demo data, where it lies beside the checkout: every row converts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.tagged import Tags
from luthier.plugins import preference
from luthier.plugins.preference import ranking

FILE = Path(__file__).resolve().parents[4] / "shared" / "data" / "dpo_en_demo.json"


@pytest.mark.skipif(not FILE.is_file(), reason="the demo data is fetched, not committed")
def test_every_row_of_the_demo_file() -> None:
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    assert len(rows) == 300
    for row in rows:
        assert [item.name for item in preference.luthier_data_formats() if item.detect(row)] == ["ranking"]
        converted = ranking.convert(row, Tags())
        # The file's roles are human, gpt and system, and its answers are single messages.
        assert [turn["content"] for turn in converted["messages"]] == [turn["value"] for turn in row["conversations"]]
        assert {turn["role"] for turn in converted["messages"]} <= {"system", "user", "assistant"}
        assert converted["messages"][-1]["role"] == "user"
        assert converted["chosen"] == [{"role": "assistant", "content": row["chosen"]["value"]}]
        assert converted["rejected"] == [{"role": "assistant", "content": row["rejected"]["value"]}]
