"""Strict reading: unknown keys, types without coercion, bounds, all at once and in plain words."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from luthier.core.config import DataConfig, ModelConfig, RunConfig, SourceConfig, TrainConfig, load_config, parse_config
from luthier.core.config.schema import Choice
from luthier.core.config.validate import parse_options
from luthier.core.errors import LuthierError, PlanRefused, Problem
from luthier.core.options import option

BASE: dict[str, Any] = {"model": "m", "data": {"train": ["rows.jsonl"]}}
JARGON = re.compile(
    r"pydantic|Input should|valid (string|integer|number)|\bstr\b|\bint\b|\bNone\b|\bNoneType\b|\bTrue\b|dataclass|tuple"
)


def with_(path: str, value: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {"model": {"name": "m"}, "data": {"train": [{"path": "rows.jsonl"}]}, "train": {}}
    *sections, last = path.split(".")
    place: Any = raw
    for section in sections:
        place = place[int(section)] if isinstance(place, list) else place[section]
    place[last] = value
    return raw


def problems_of(raw: Any) -> tuple[Problem, ...]:
    with pytest.raises(PlanRefused) as caught:
        parse_config(raw)
    return caught.value.problems


def only(raw: Any) -> Problem:
    problems = problems_of(raw)
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize(
    ("raw", "model", "sources"),
    [
        (BASE, "m", ["rows.jsonl"]),
        ({"model": {"name": "m"}, "data": {"train": [{"path": "rows.jsonl"}]}}, "m", ["rows.jsonl"]),
        ({"model": "m", "data": {"train": ["a", {"path": "b"}]}}, "m", ["a", "b"]),
        ({"model": "m", "data": {"train": "a"}}, "m", ["a"]),
        ({"model": "m", "data": {"train": {"path": "a"}}}, "m", ["a"]),
    ],
)
def test_shorthands(raw: Any, model: str, sources: list[str]) -> None:
    config = parse_config(raw)
    assert config.model == ModelConfig(name=model)
    assert config.data.train == tuple(SourceConfig(path=path) for path in sources)


@pytest.mark.parametrize(
    ("written", "read"),
    [(0.05, 0.05), (100, 100), (0, 0), (["e"], (SourceConfig(path="e"),)), ("e", (SourceConfig(path="e"),))],
)
def test_what_is_held_out_can_be_a_part_a_number_or_sources(written: Any, read: Any) -> None:
    held = parse_config(with_("data.eval", written)).data.eval
    assert held == read
    assert type(held) is type(read)


def test_slots_take_names_mappings_and_auto() -> None:
    config = parse_config(
        {
            **BASE,
            "adapter": "lora",
            "optimizer": {"lr": 0.1},
            "stage": {"use": "sft"},
            "patches": ["a", {"use": "b", "x": 1}],
        }
    )
    assert config.adapter == Choice(use="lora")
    assert config.optimizer.is_auto  # type: ignore[union-attr]
    assert config.optimizer.options == {"lr": 0.1}  # type: ignore[union-attr]
    assert config.attention == Choice()
    assert [choice.use for choice in config.patches] == ["a", "b"]  # type: ignore[union-attr]
    assert parse_config({**BASE, "patches": "a"}).patches == (Choice(use="a"),)
    assert parse_config({**BASE, "patches": []}).patches == ()
    assert parse_config(BASE).patches == Choice()


def test_paths_from_python_are_text() -> None:
    assert load_config({**BASE, "output": Path("runs") / "x"}).output == "runs/x"


SECTIONS = [
    ("", RunConfig),
    ("model.", ModelConfig),
    ("data.", DataConfig),
    ("data.train.0.", SourceConfig),
    ("train.", TrainConfig),
]


@pytest.mark.parametrize(
    ("prefix", "name"),
    [(prefix, field.name) for prefix, cls in SECTIONS for field in dataclasses.fields(cls)],
)
def test_every_misspelt_key_has_a_suggestion(prefix: str, name: str) -> None:
    misspelt = name[:-2] + name[-1] + name[-2]
    problems = [problem for problem in problems_of(with_(prefix + misspelt, 1)) if problem.reason == "unknown key"]
    place = (prefix + misspelt).replace(".0.", "[0].")
    assert [problem.where for problem in problems] == [place]
    assert problems[0].fix == f"did you mean `{name}`?"


def test_a_key_like_no_other_lists_those_that_there_are() -> None:
    fix = only(with_("model.zzzzzz", 1)).fix
    assert fix == "known keys: name, adapters, revision, trust_remote_code"


def test_a_misspelt_required_key_is_one_problem() -> None:
    problem = only({"modle": "m", "data": {"train": ["x"]}})
    assert (problem.where, problem.fix) == ("modle", "did you mean `model`?")
    assert only({"model": "m", "data": {"trian": ["x"]}}).where == "data.trian"


def test_missing_keys_say_what_to_write() -> None:
    problems = {problem.where: problem for problem in problems_of({})}
    assert set(problems) == {"model", "data"}
    assert problems["model"].reason == "is required"
    assert problems["model"].fix.startswith("give `model`, a name (text) or a mapping.")
    assert only({"model": "m", "data": {}}).where == "data.train"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("train.seed", True, "must be a whole number, got true (true or false)"),
        ("train.seed", "8", "must be a whole number, got '8' (text)"),
        ("train.seed", 8.0, "must be a whole number, got 8.0 (a number)"),
        ("train.seed", None, "must be a whole number, got null (nothing)"),
        ("train.max_steps", 8.5, "must be a whole number or null, got 8.5 (a number)"),
        ("train.epochs", "1", "must be a number, got '1' (text)"),
        ("train.epochs", True, "must be a number, got true (true or false)"),
        ("train.epochs", [1], "must be a number, got [1] (a list)"),
        ("train.epochs", float("nan"), "must be a finite number, got nan"),
        ("train.epochs", float("inf"), "must be a finite number, got inf"),
        ("train.seed", 2**63, "must fit 64 bits, this number is larger"),
        ("train.seed", -(10**300), "must fit 64 bits, this number is larger"),
        ("train", 5, "must be a mapping, got 5 (a number)"),
        ("train", None, "must be a mapping, got null (nothing)"),
        ("train", [], "must be a mapping, got [] (a list)"),
        ("model", 5, "must be a name (text) or a mapping, got 5 (a number)"),
        ("model.trust_remote_code", 1, "must be true or false, got 1 (a number)"),
        ("model.trust_remote_code", "true", "must be true or false, got 'true' (text)"),
        ("data.train", 5, "must be a list, each item a path (text) or a mapping, got 5 (a number)"),
        ("data.eval", True, "must be a number or a list, each item a path (text) or a mapping, got true (true or false)"),
        ("data.train_on", "complete", "must be one of completion, assistant, last, all, got 'complete' (text)"),
        ("precision", 16, "must be one of auto, fp32, bf16, mixed, got 16 (a number)"),
        ("output", 5, "must be text, got 5 (a number)"),
        ("output", "\ud800", "must be text that can be written as UTF-8, got '\\ud800'"),
        ("output", {1, 2}, "must be text, a number, true, false, null, a list or a mapping, got {1, 2} (set)"),
        ("adapter", 5, "must be a name or a mapping {use: name, ...options}, got 5 (a number)"),
        ("adapter", None, "must be a name or a mapping {use: name, ...options}, got null (nothing)"),
        ("adapter", "", "must be a name or a mapping {use: name, ...options}, got '' (text)"),
        ("train.epochs", 0, "must be greater than 0, got 0"),
        ("train.batch_tokens", 7, "must be at least 8, got 7"),
        ("train.seed", -1, "must be at least 0, got -1"),
        ("data.max_length", 7, "must be at least 8, got 7"),
    ],
)
def test_a_wrong_value_is_one_problem_in_plain_words(path: str, value: Any, reason: str) -> None:
    problem = only(with_(path, value))
    assert (problem.where, problem.reason) == (path, reason)
    assert not JARGON.search(f"{problem.reason} {problem.fix}".replace("(set)", ""))


@pytest.mark.parametrize(
    ("path", "value", "fix"),
    [
        ("train.seed", "8", "write it without quotes: 8"),
        ("train.epochs", "1e-1", "write it without quotes: 1e-1"),
        ("train.seed", 8.0, "write 8"),
        ("train.seed", "eight", ""),
        ("output", 5, "put it in quotes, where it is meant as text"),
        ("precision", "BF16", "did you mean `bf16`?"),
        ("precision", 16, ""),
        ("data.train_on", "al", "did you mean `all`?"),
    ],
)
def test_the_fix_is_the_nearest_right_value(path: str, value: Any, fix: str) -> None:
    assert only(with_(path, value)).fix == fix


@pytest.mark.parametrize("value", [8, 8.0, 1e300])
def test_a_number_may_be_whole(value: Any) -> None:
    epochs = parse_config(with_("train.epochs", value)).train.epochs
    assert epochs == value
    assert isinstance(epochs, float)


def test_errors_in_a_list_have_their_item() -> None:
    problems = problems_of(
        {"model": "m", "data": {"train": ["a", {"path": 3}, {"path": "b", "rows": 0}], "eval": [{"path": 4}]}}
    )
    assert {problem.where: problem.reason for problem in problems} == {
        "data.train[1].path": "must be text or null, got 3 (a number)",
        "data.train[2].rows": "must be at least 1, got 0",
        "data.eval[0].path": "must be text or null, got 4 (a number)",
    }


def test_a_part_of_one_or_more_is_refused() -> None:
    problem = only(with_("data.eval", 1.5))
    assert "1.5 is no part of the rows" in problem.reason
    assert parse_config(with_("data.eval", 1)).data.eval == 1


def test_every_problem_is_said_at_once() -> None:
    raw = {
        "model": {"name": 3, "trust_remote_code": "yes"},
        "data": {"train": [{"pth": "x"}], "max_length": 2},
        "stage": 5,
        "patches": [3, {"every": 1}],
        "train": {"epochs": 0, "seed": "x"},
        "precision": "half",
        "extra": 1,
    }
    assert {problem.where for problem in problems_of(raw)} == {
        "model.name", "model.trust_remote_code", "data.train[0].pth", "data.max_length", "stage", "patches[0]", "patches[1]",
        "train.epochs", "train.seed", "precision", "extra",
    }  # fmt: skip


def test_problems_come_in_the_same_order_every_time() -> None:
    raw = {"model": 1, "data": {"train": 1}, "train": {"a": 1, "b": 1, "seed": "x"}, "zz": 1}
    assert len({str(PlanRefused(problems_of(raw))) for _ in range(3)}) == 1
    assert problems_of(raw)[0].where == "zz"


@pytest.mark.parametrize("raw", [None, 5, "text", [], [1], b"bytes", 1.5, True])
def test_a_configuration_that_is_no_mapping(raw: Any) -> None:
    with pytest.raises(LuthierError, match="a configuration is a mapping"):
        parse_config(raw)


def test_keys_that_are_no_text() -> None:
    assert "a key must be text, got 1 (a number)" in only({**BASE, 1: 2}).reason
    assert only({**BASE, "adapter": {"use": "x", True: 2}}).where == "adapter"


# A dataclass as a third party would write it: standard library, nothing of ours but `option`, and even that is optional.


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = option(4, "Size.", ge=1, le=8)
    mode: Literal["fast", "exact"] = "fast"


@dataclass(frozen=True, kw_only=True)
class Other:
    path: str


@dataclass(frozen=True, kw_only=True)
class ThirdParty:
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = dataclasses.field(default_factory=dict)
    either: Inner | Other | None = None
    pair: tuple[float, float] = option((0.9, 0.99), "Pair.", ge=0, lt=1)
    limit: Literal["auto"] | float = option("auto", "Limit.", gt=0)
    low: int = 1
    high: int = 2

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) lies above high ({self.high})")


def third(values: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(PlanRefused) as caught:
        parse_options(ThirdParty, values, where="adapter")
    return {problem.where: problem.reason for problem in caught.value.problems}


def test_a_third_partys_dataclass_is_read_strictly() -> None:
    values = {
        "inner": {"size": 8},
        "many": [{}, {"mode": "exact"}],
        "named": {"a": {"size": 1}},
        "either": {"path": "x"},
        "pair": [0, 0.5],
        "limit": 2,
    }
    assert parse_options(ThirdParty, values, where="adapter") == ThirdParty(
        inner=Inner(size=8),
        many=(Inner(), Inner(mode="exact")),
        named={"a": Inner(size=1)},
        either=Other(path="x"),
        pair=(0.0, 0.5),
        limit=2.0,
    )


@pytest.mark.parametrize(
    ("values", "where", "reason"),
    [
        ({"inner": {"sise": 1}}, "adapter.inner.sise", "unknown key"),
        ({"inner": {"size": 9}}, "adapter.inner.size", "must be at most 8, got 9"),
        ({"inner": {"size": "9"}}, "adapter.inner.size", "must be a whole number, got '9' (text)"),
        ({"inner": 5}, "adapter.inner", "must be a mapping, got 5 (a number)"),
        ({"many": [{}, {"size": 0}]}, "adapter.many[1].size", "must be at least 1, got 0"),
        ({"many": [{}, {"sise": 0}]}, "adapter.many[1].sise", "unknown key"),
        ({"many": {"size": 1}}, "adapter.many", "must be a list, each item a mapping, got {'size': 1} (a mapping)"),
        ({"named": {"a": {"mode": "slow"}}}, "adapter.named.a.mode", "must be one of fast, exact, got 'slow' (text)"),
        ({"named": {"size": {"sise": 1}}}, "adapter.named.size.sise", "unknown key"),
        ({"named": {"a": {"size": 0}}}, "adapter.named.a.size", "must be at least 1, got 0"),
        ({"named": [1]}, "adapter.named", "must be a mapping of names to a mapping, got [1] (a list)"),
        ({"either": {"path": 3}}, "adapter.either.path", "must be text, got 3 (a number)"),
        ({"either": 5}, "adapter.either", "must be a mapping or a mapping or null, got 5 (a number)"),
        ({"pair": [0.5]}, "adapter.pair[1]", "is required"),
        (
            {"pair": [0.5, 0.5, 0.5]},
            "adapter.pair",
            "must be a list of exactly 2: a number, a number, got [0.5, 0.5, 0.5] (a list)",
        ),
        ({"pair": [0.5, 1.0]}, "adapter.pair[1]", "must be less than 1, got 1.0"),
        ({"pair": [0.5, "x"]}, "adapter.pair[1]", "must be a number, got 'x' (text)"),
        ({"limit": "never"}, "adapter.limit", "must be one of auto or a number, got 'never' (text)"),
        ({"limit": 0}, "adapter.limit", "must be greater than 0, got 0"),
        ({"low": 3}, "adapter", "low (3) lies above high (2)"),
    ],
)
def test_problems_of_a_third_partys_dataclass(values: dict[str, Any], where: str, reason: str) -> None:
    assert third(values) == {where: reason}


def test_problems_of_types_and_bounds_are_said_together() -> None:
    assert set(third({"inner": {"size": 0}, "limit": "x", "pair": [2, "y"]})) == {
        "adapter.inner.size", "adapter.limit", "adapter.pair[0]", "adapter.pair[1]",
    }  # fmt: skip


def test_reading_options_leaves_the_class_usable_by_its_owner() -> None:
    parse_options(ThirdParty, {}, where="adapter")
    assert ThirdParty(low=1).high == 2
    with pytest.raises(TypeError):
        ThirdParty(unknown=1)  # type: ignore[call-arg]


@dataclass(frozen=True, kw_only=True)
class Sub(Inner):
    more: int = 0


def test_a_subclass_of_an_options_class_has_its_own_keys() -> None:
    parse_options(Inner, {"size": 2}, where="x")
    assert parse_options(Sub, {"size": 2, "more": 1}, where="x") == Sub(size=2, more=1)
    with pytest.raises(PlanRefused, match="unknown key"):
        parse_options(Inner, {"more": 1}, where="x")
    with pytest.raises(PlanRefused, match="unknown key"):
        parse_options(Sub, {"mroe": 1}, where="x")
