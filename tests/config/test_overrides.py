"""`key=value` words on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.config import apply_overrides, load_config
from luthier.core.errors import ConfigError

BASE: dict[str, Any] = {"model": "m", "data": {"train": ["a.jsonl", {"path": "b.jsonl"}]}}


@pytest.mark.parametrize(
    ("base", "word", "expected"),
    [
        ({}, "train.epochs=2", {"train": {"epochs": 2}}),
        ({"train": {"seed": 1}}, "train.epochs=2", {"train": {"seed": 1, "epochs": 2}}),
        ({"train": None}, "train.epochs=2", {"train": {"epochs": 2}}),
        ({"adapter": "lora"}, "adapter.rank=8", {"adapter": {"use": "lora", "rank": 8}}),
        ({"adapter": {"use": "lora", "rank": 4}}, "adapter.rank=8", {"adapter": {"use": "lora", "rank": 8}}),
        ({}, "adapter.rank=8", {"adapter": {"rank": 8}}),
        ({"adapter": {"use": "lora"}}, "adapter=full", {"adapter": "full"}),
        ({}, "adapter={use: lora, rank: 2}", {"adapter": {"use": "lora", "rank": 2}}),
        ({}, "adapter.target=[attn, mlp]", {"adapter": {"target": ["attn", "mlp"]}}),
        ({"adapter": {"target": ["attn", "mlp"]}}, "adapter.target.1=embed", {"adapter": {"target": ["attn", "embed"]}}),
        ({"model": "m"}, "model.revision=main", {"model": {"name": "m", "revision": "main"}}),
        ({"patches": ["a", "b"]}, "patches.1.x=3", {"patches": ["a", {"use": "b", "x": 3}]}),
        ({"patches": ["a", "b"]}, "patches[1].x=3", {"patches": ["a", {"use": "b", "x": 3}]}),
        ({"patches": ["a", "b"]}, "patches.0=c", {"patches": ["c", "b"]}),
        (BASE, "data.train.0.rows=5", {**BASE, "data": {"train": [{"path": "a.jsonl", "rows": 5}, {"path": "b.jsonl"}]}}),
        (BASE, "data.train[1].rows=5", {**BASE, "data": {"train": ["a.jsonl", {"path": "b.jsonl", "rows": 5}]}}),
        ({"data": {"train": "a"}}, "data.train.0.rows=5", {"data": {"train": [{"path": "a", "rows": 5}]}}),
        ({}, "optimizer.lr=2e-4", {"optimizer": {"lr": 2e-4}}),
        ({}, "output=a=b", {"output": "a=b"}),
        ({}, "output='8'", {"output": "8"}),
        ({}, "train.max_steps=", {"train": {"max_steps": None}}),
    ],
)
def test_a_word_sets_one_key(base: dict[str, Any], word: str, expected: dict[str, Any]) -> None:
    assert apply_overrides(base, [word]) == expected


def test_later_words_win_and_the_original_is_left_alone() -> None:
    assert apply_overrides(BASE, ["train.seed=1", "train.seed=2"])["train"] == {"seed": 2}
    load_config(BASE, ["data.train.1.rows=1", "data.train.0=c.jsonl"])
    assert BASE == {"model": "m", "data": {"train": ["a.jsonl", {"path": "b.jsonl"}]}}


def test_what_was_overridden_is_what_is_used() -> None:
    config = load_config(BASE, ["adapter=lora", "adapter.rank=8", "train.epochs=2", "data.train.0.rows=3"])
    assert (config.adapter.use, config.adapter.options["rank"]) == ("lora", 8)  # type: ignore[union-attr]
    assert config.train.epochs == 2.0
    assert [source.rows for source in config.data.train] == [3, None]


@pytest.mark.parametrize(
    "word", ["adapter", "", "=", "=3", ".=3", "a..b=3", "adapter.=3", "a b=3", "--lr=3", "0=3", "a[x]=3"]
)
def test_a_word_that_is_no_override_says_how_one_looks(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BASE, [word])
    assert "is no override" in caught.value.message
    assert "adapter.rank=8" in caught.value.fix


@pytest.mark.parametrize(
    ("word", "said", "fix"),
    [
        ("data.train.2.rows=3", "`data.train` has no item 2", "it has 2 items, counted from 0"),
        ("data.train.path=x", "`data.train` has no item path", "it has 2 items, counted from 0"),
        ("model.name.x=3", "`model.name` is 'm' (text) and has no keys", "set model.name itself"),
        ("patches.0=3", "`patches` has no items", "write patches=[...]"),
        ("data.eval.0.path=x", "`data.eval` has no items", "write data.eval=[...]"),
        ("train.seed.0=3", "`train.seed` has no items", "set train.seed itself"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(word: str, said: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BASE, [word])
    assert said in caught.value.message
    assert caught.value.fix == fix


@pytest.mark.parametrize("value", ["[1", "{a: 1", "'x", "!!int x", "9" * 5000, "a\x00b", "[" * 5000])
def test_a_value_that_is_no_yaml_names_the_override(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BASE, [f"train.seed={value}"])
    assert caught.value.where.startswith("override train.seed")
