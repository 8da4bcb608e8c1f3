"""A whole run: its data is tokenised before anything is loaded, told as it goes on, and accounted for at the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.data.cache import data_folder
from luthier.core.errors import Interrupted
from luthier.core.extensions import RunEvent

Chat = Callable[..., dict[str, Any]]


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Callable[..., Path], jsonl: Any, chat: Chat) -> Callable[[str], dict[str, Any]]:
    """`config("run")`: 300 rows, 30 of which are too long, and one step."""
    path = jsonl([chat(f"q {number}", "a" * (99 if number % 10 == 0 else 3)) for number in range(300)])

    def make(output: str) -> dict[str, Any]:
        return {
            "model": str(tiny_folder("llama")),
            "data": {"train": [str(path)], "max_length": 64, "eval": 20},
            "adapter": {"use": "lora", "rank": 2},
            "train": {"batch_tokens": 64, "max_steps": 1},
            "output": str(tmp_path / output),
        }

    return make


def test_told_as_it_goes_on_and_accounted_for(config: Any, tmp_path: Path) -> None:
    events: list[RunEvent] = []
    results = luthier.train(config("first"), observers=[events.append])
    rows = [event.values for event in events if event.kind == "phase" and "rows" in event.values]
    assert [(values["name"], values["rows"], values["of"]) for values in rows] == [("data", 256, 300), ("data", 300, 300)]
    names = [event.values["name"] for event in events if event.kind == "phase"]
    assert names.index("load") > max(place for place, name in enumerate(names) if name == "data")
    data = json.loads((tmp_path / "first" / "all_results.json").read_text())["data"]
    assert data == results["data"]
    assert (data["rows"], data["kept"], data["held_out"], data["dropped"]) == (300, 250, 20, {"longer than 64 tokens": 30})
    (source,) = data["sources"]
    assert (source["rows"], source["kept"], source["dropped"], source["cached"]) == (300, 270, 30, False)
    card = (tmp_path / "first" / "README.md").read_text()
    assert "Rows left out: longer than 64 tokens: 30." in card
    assert any("30 of 300 rows (10%) were dropped" in event.message for event in events if event.kind == "warning")

    events.clear()
    again = luthier.train(config("second"), observers=[events.append])
    assert again["data"]["sources"][0]["cached"] is True
    assert not [event for event in events if event.kind == "phase" and "rows" in event.values]
    assert again["train_loss"] == results["train_loss"]


def test_a_run_that_is_stopped_meanwhile(config: Any, tmp_path: Path) -> None:
    stop = threading.Event()

    def at_the_first_rows(event: RunEvent) -> None:
        if "rows" in event.values:
            stop.set()

    with pytest.raises(Interrupted, match="stopped while the data was tokenised") as caught:
        luthier.train(config("run"), observers=[at_the_first_rows], stop=stop)
    assert caught.value.exit_code == 130
    assert list(data_folder().iterdir()) == []
    # Nothing was written that would stand in the way of the same command.
    luthier.train(config("run"))
    assert (tmp_path / "run" / "all_results.json").is_file()
