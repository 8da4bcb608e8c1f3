"""Sampled, interleaved and held-out rows of several sources: what is trained on, and that every row is accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.config.schema import RunConfig, SourceConfig
from luthier.core.data import Examples

Write = Callable[..., Path]
Config = Callable[..., RunConfig]
Chat = Callable[..., dict[str, Any]]


def contents(examples: Examples) -> list[tuple[int, ...]]:
    return [tuple(example["input_ids"].tolist()) for example in examples]


@pytest.fixture
def two(jsonl: Write, config: Config, chat: Chat) -> Callable[..., RunConfig]:
    """`two(30, 10, a={...}, b={...}, **data)`: two sources whose rows have 1 and 2 tokens of answer, all different."""

    def make(many: int, few: int, *, a: Any = None, b: Any = None, seed: int = 0, **data: Any) -> RunConfig:
        one = jsonl([chat(f"a {n:04}", "1") for n in range(many)], "a.jsonl")
        other = jsonl([chat(f"b {n:04}", "22") for n in range(few)], "b.jsonl")
        made = config(one, seed=seed, **data)
        sources = (SourceConfig(path=str(one), **a or {}), SourceConfig(path=str(other), **b or {}))
        return replace(made, data=replace(made.data, train=sources))

    return make


def of(examples: Examples, answer: int) -> int:
    """Rows of the source whose answers have so many tokens, their end counted."""
    return sum(int((example["labels"] != -100).sum()) == answer + 1 for example in examples)


def test_one_after_another(run: Any, two: Any, account: Any) -> None:
    prepared = run(two(30, 10))
    account(prepared)
    learned = [int((example["labels"] != -100).sum()) for example in prepared.train]
    assert learned == [2] * 30 + [3] * 10
    assert [(source.rows, source.kept) for source in prepared.report.sources] == [(30, 30), (10, 10)]


def test_a_sample_less_and_more(run: Any, two: Any, account: Any) -> None:
    prepared = run(two(30, 10, a={"sample": 0.2}, b={"sample": 25}))
    account(prepared)
    assert (of(prepared.train, 1), of(prepared.train, 2)) == (6, 25)
    assert (prepared.report.dropped, prepared.report.added) == ({"not sampled": 24}, {"repeated by sampling": 15})
    assert sorted(Counter(contents(prepared.train)).values())[-10:] == [2] * 5 + [3] * 5
    # What the user asked for is no reason to warn.
    assert prepared.report.warnings == ()
    other = run(two(30, 10, a={"sample": 0.2}, b={"sample": 25}, seed=1))
    assert set(contents(other.train)) != set(contents(prepared.train))
    assert run(two(30, 10, a={"sample": 0.2}, b={"sample": 25})).train.digest == prepared.train.digest


def test_interleaved_until_the_first_is_used_up(run: Any, two: Any, account: Any) -> None:
    prepared = run(two(600, 100, a={"weight": 3.0}, mix="interleave"))
    account(prepared)
    first, second = of(prepared.train, 1), of(prepared.train, 2)
    assert second == 100
    assert abs(first - 300) < 5 * (300 * 4) ** 0.5  # a negative binomial: a mean of 300, a variance of 1200
    assert prepared.report.dropped == {"not reached when a source was used up": 600 - first}
    (warning,) = prepared.report.warnings
    assert "not reached when a source was used up" in warning
    # Each source's rows come in their own order.
    texts = contents(prepared.train)
    short = [text for text in texts if len(text) == min(map(len, texts))]
    assert short == sorted(short)


def test_interleaved_until_all_are_used_up(run: Any, two: Any, account: Any) -> None:
    prepared = run(two(300, 20, mix="interleave", stop="all_exhausted"))
    account(prepared)
    first, second = of(prepared.train, 1), of(prepared.train, 2)
    assert first == 300
    assert second > 200
    assert prepared.report.added == {"repeated until every source was used up": second - 20}
    assert prepared.report.dropped == {}
    assert len(set(contents(prepared.train))) == 320


@pytest.mark.parametrize("mix", ["concatenate", "interleave"])
def test_held_out_rows_are_those_of_the_content_however_they_are_mixed(run: Any, two: Any, account: Any, mix: Any) -> None:
    plain = run(two(60, 40, eval=20))
    prepared = run(two(60, 40, eval=20, mix=mix, stop="all_exhausted"))
    account(prepared)
    assert contents(prepared.eval) == contents(plain.eval)
    assert not set(contents(prepared.eval)) & set(contents(prepared.train))


def test_repeated_rows_stay_on_one_side(run: Any, two: Any, account: Any) -> None:
    prepared = run(two(40, 20, b={"sample": 60}, eval=0.3))
    account(prepared)
    assert not set(contents(prepared.eval)) & set(contents(prepared.train))
    assert set(Counter(contents(prepared.eval)).values()) <= {1, 3}
    assert 3 in Counter(contents(prepared.eval)).values()


def test_evaluation_sources_are_sampled_too(run: Any, two: Any, jsonl: Write, chat: Chat, account: Any) -> None:
    held = jsonl([chat(f"held {n}", "1") for n in range(50)], "held.jsonl")
    prepared = run(two(30, 10, eval=(SourceConfig(path=str(held), sample=0.1),)))
    account(prepared)
    assert (prepared.report.held_out, prepared.report.dropped) == (5, {"not sampled": 45})
    assert [source.role for source in prepared.report.sources] == ["train", "train", "eval"]


def test_a_source_of_which_nothing_is_left_takes_no_part(run: Any, two: Any, account: Any) -> None:
    prepared = run(two(30, 10, eval=39, mix="interleave"))
    account(prepared)
    assert len(prepared.train) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sample=st.tuples(*[st.none() | st.floats(0.05, 1.0) | st.integers(1, 60)] * 2),
    weight=st.floats(0.3, 3.0),
    mix=st.sampled_from(["concatenate", "interleave"]),
    stop=st.sampled_from(["first_exhausted", "all_exhausted"]),
    part=st.just(0.0) | st.floats(0.05, 0.4) | st.integers(1, 3),
    seed=st.integers(0, 2**40),
)
def test_every_row_is_accounted_for(
    run: Any, two: Any, account: Any, sample: Any, weight: float, mix: Any, stop: Any, part: Any, seed: int
) -> None:
    a, b = {"sample": sample[0], "weight": weight}, {"sample": sample[1]}
    # A sample of a few rows may be all that is there to hold out.
    if isinstance(part, int) and sum(one is not None for one in sample) == 2:
        part = 0.2
    if all(one is not None and one <= 2 for one in sample):
        part = 0.0
    prepared = run(two(30, 10, a=a, b=b, mix=mix, stop=stop, eval=part, seed=seed))
    account(prepared)
    assert not set(contents(prepared.eval)) & set(contents(prepared.train))
