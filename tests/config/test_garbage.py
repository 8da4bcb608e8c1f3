"""Whatever a user hands over, it is a configuration or an error for people; never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luthier.core.config import RunConfig, apply_overrides, load_config, parse_config
from luthier.core.config.yaml_text import read_yaml
from luthier.core.errors import ConfigError, LuthierError

GOOD: dict[str, Any] = {"model": "m", "data": {"train": ["x"]}}
KEYS = (
    "model", "data", "stage", "adapter", "optimizer", "attention", "patches", "precision", "train", "output", "name",
    "eval", "path", "rows", "format", "use", "lr", "epochs", "seed", "max_length", "revision", "0",
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["auto", "lora", "8", "", "use", "\ud800", "fp32"])
    | st.builds(lambda: 10**5000)  # built late, because hypothesis prints its strategies
    | st.binary(max_size=3)
    | st.dates()
)
GARBAGE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(KEYS) | st.text() | st.integers() | st.none(), inner, max_size=5)
    ),
    max_leaves=20,
)
# Mostly right, so that the garbage gets past the first gate.
HALF_RIGHT = st.fixed_dictionaries(
    {"model": st.just("m") | GARBAGE, "data": st.fixed_dictionaries({"train": st.just(["x"]) | GARBAGE}) | GARBAGE},
    optional=dict.fromkeys(KEYS[2:10], GARBAGE),
)


def parsed(raw: Any) -> RunConfig | None:
    try:
        config = parse_config(raw)
    except LuthierError as error:
        text = str(error)
        assert text
        text.encode()
        return None
    assert isinstance(config, RunConfig)
    hash(config)
    return config


def cycle() -> dict[str, Any]:
    loop: dict[str, Any] = dict(GOOD)
    loop["adapter"] = loop
    return loop


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(GARBAGE)
def test_garbage(raw: Any) -> None:
    parsed(raw)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(cycle, "contains itself", id="cycle"),
        pytest.param(lambda: {**GOOD, "output": deep(20_000)}, "levels deep", id="deep"),
        pytest.param(lambda: {**GOOD, "output": ["x"] * 200_000}, "more than 100000 values", id="long"),
        pytest.param(lambda: {**GOOD, "adapter": {"use": "x", "y": object()}}, "adapter.y: must be text", id="object"),
        pytest.param(
            lambda: {**GOOD, "adapter": {"use": "x", "y": [float("nan")]}}, "adapter.y[0]: must be a finite", id="nan"
        ),
        pytest.param(lambda: {**GOOD, "adapter": {"use": "x", (1, 2): 3}}, "adapter: a key must be text", id="key"),
        pytest.param(lambda: {**GOOD, "train": {"seed": 10**5000}}, "train.seed: must fit 64 bits", id="large"),
    ],
)
def test_what_has_no_place_in_a_configuration(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(LuthierError) as caught:
        parse_config(make())
    assert said in str(caught.value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HALF_RIGHT)
def test_garbage_below_keys_that_exist(raw: Any) -> None:
    parsed(raw)


WORD = st.builds(
    lambda keys, value: ".".join(keys) + "=" + value,
    st.lists(st.sampled_from(KEYS) | st.text(max_size=3), min_size=1, max_size=4),
    st.text(max_size=8) | st.sampled_from(["[1, 2]", "{use: x}", "1e3", "'", "[", "&a [*a]", "!!int x", "\udc80"]),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HALF_RIGHT, st.lists(WORD | st.text(max_size=6), max_size=3))
def test_garbage_with_overrides(raw: Any, words: list[str]) -> None:
    try:
        load_config(raw, words)
    except LuthierError as error:
        str(error).encode(errors="surrogateescape")


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text(alphabet="ab:-[]{}#&*!|>'\"%@ \n\t0123.e?,=<~"))
@example("&a [*a]")
@example("a: !!int")
@example("!!float ''")
@example("- !!binary x")
@example("%YAML 3.0\n---\n")
def test_any_text_is_data_or_a_config_error(text: str) -> None:
    places = ["f.yaml"]
    try:
        read_yaml(text, "f.yaml")
    except ConfigError as error:
        places.append(error.where)
    assert all(place.startswith("f.yaml") for place in places)


def test_overrides_of_something_that_contains_itself() -> None:
    with pytest.raises(LuthierError, match="contains itself"):
        apply_overrides(cycle(), ["train.seed=1"])
