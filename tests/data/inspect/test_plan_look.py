"""The plan's data report: the first rows, tokenised before anything runs, and what it refuses because of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.data import look as module
from luthier.core.errors import DataError
from luthier.core.plan import Plan


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    def make(rows: list[Any], *, folder: Path | None = None, **data: Any) -> dict[str, Any]:
        source = tmp_path / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {
            "model": str(folder or tiny_folder("llama")),
            "data": {"train": [str(source)], "max_length": 100, **data},
            "adapter": "lora",
            "output": str(tmp_path / "run"),
        }

    return make


def row(say: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": say}]}


def test_rows_are_counted_by_reason(config: Callable[..., Any], tiny_tokenizer: Any) -> None:
    rows = [row("a"), row("bb"), row("c" * 200), {"messages": [{"role": "bot", "content": "x"}]}]
    look = luthier.plan(config(rows, bad_rows="drop")).data_look
    assert look is not None
    assert (look.rows, look.kept, look.whole) == (4, 2, True)
    assert look.dropped == {"longer than 100 tokens": 1, "messages[].role ... is no role": 1}
    lengths = [len(tiny_tokenizer.apply_chat_template(one["messages"])["input_ids"]) for one in rows[:2]]
    assert look.tokens == sum(lengths)
    assert 0 < look.trained_tokens < look.tokens
    assert any("2 of 4 rows (50%) were dropped" in warning for warning in look.warnings)


def test_more_rows_than_are_looked_at(config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_ROWS", 5)
    look = luthier.plan(config([row("a")] * 8)).data_look
    assert look is not None
    assert (look.rows, look.whole) == (5, False)
    exactly = luthier.plan(config([row("a")] * 5)).data_look
    assert exactly is not None
    assert exactly.whole


def test_it_is_part_of_the_plan_and_not_of_its_hash(config: Callable[..., Any], tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("llama")
    made = luthier.plan(config([row("a")], folder=folder))
    assert Plan.from_json(made.to_json()) == made
    assert luthier.plan(config([row("a"), row("b")], folder=folder)).hash == made.hash


def test_a_model_without_a_template_is_refused_with_the_list(
    config: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder("llama")
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = folder / name
        if name.endswith(".json"):
            settings = json.loads(path.read_text())
            settings.pop("chat_template", None)
            path.write_text(json.dumps(settings))
        else:
            path.unlink(missing_ok=True)
    with pytest.raises(DataError, match="has no chat template") as caught:
        luthier.plan(config([row("a")], folder=folder))
    assert "chatml" in caught.value.fix
    made = luthier.plan(config([row("a")], folder=folder, template="vicuna", max_length=300))
    assert made.data_look is not None
    assert made.data_look.template == "vicuna"


def test_a_bad_row_beyond_the_first_twenty_is_found(config: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="is an empty answer") as caught:
        luthier.plan(config([row("a")] * 30 + [row(" ")]))
    assert "rows.jsonl:31" in caught.value.where


def test_without_a_tokenizer_the_plan_says_that_nobody_looked(
    config: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    folder = tiny_folder("llama")
    for path in (*folder.glob("tokenizer*"), *folder.glob("*.jinja"), *folder.glob("special_tokens*")):
        path.unlink()
    made = luthier.plan(config([row("a")], folder=folder))
    assert made.data_look is None
    assert any("the data's tokens were not looked at" in warning for warning in made.warnings)
