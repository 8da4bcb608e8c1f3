"""The terms that need nothing but the answer, against values written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from luthier.core.config.schema import Choice
from luthier.core.frozen import freeze
from luthier.core.rewards import RewardError, Rewards, Scored, open_rewards

NO_RUN: Any = None  # these terms ask nothing of it


def opened(*terms: dict[str, Any]) -> Rewards:
    return open_rewards(
        [Choice(use=term["use"], options=freeze({k: v for k, v in term.items() if k != "use"})) for term in terms],
        runtime=NO_RUN,
    )


def answer(
    text: str, *, ids: int | None = None, finished: bool = True, reference: str | None = None, row: int = 0
) -> Scored:
    tokens = list(range(ids if ids is not None else len(text)))
    return Scored(
        prompt="<|user|>q<eos><|assistant|>",
        text=text,
        ids=tokens,
        prompt_ids=[1, 2],
        finished=finished,
        reference=reference,
        row=row,
    )


def scores(term: dict[str, Any], *answers: Scored | str) -> list[float]:
    rewards = opened(term)
    batch = rewards.score([answer(one) if isinstance(one, str) else one for one in answers])
    assert list(batch.terms) == [term["use"]]
    return batch.terms[term["use"]]


def test_a_pattern_anywhere_or_over_the_whole() -> None:
    assert scores({"use": "regex", "pattern": r"\.$"}, "Yes.", "Yes", "Yes.\n", "a. b") == [1, 0, 1, 0]
    whole = {"use": "regex", "pattern": "[a-z]+", "match": "fullmatch"}
    assert scores(whole, "abc", " abc ", "abc!", "ABC") == [1, 1, 0, 0]
    assert scores({**whole, "ignore_case": True}, "ABC") == [1]


def test_a_length_falls_off_by_the_ratio_to_the_bound() -> None:
    words = {"use": "length", "min_words": 2, "max_words": 4}
    assert scores(words, "", "one", "one two", "a b c d", "a b c d e", "a b c d e f g h") == [0, 1 / 2, 1, 1, 4 / 5, 4 / 8]
    assert scores({**words, "power": 2.0}, "one", "a b c d e") == [1 / 4, (4 / 5) ** 2]


def test_tokens_are_counted_without_the_one_that_ends_the_answer() -> None:
    term = {"use": "length", "max_tokens": 4}
    assert scores(term, answer("x", ids=5), answer("x", ids=5, finished=False), answer("x", ids=9)) == [1, 4 / 5, 4 / 8]
    assert scores({"use": "length", "min_tokens": 4}, answer("x", ids=2)) == [1 / 4]
    both = {"use": "length", "max_words": 2, "max_tokens": 4}
    assert scores(both, answer("a b c d", ids=5), answer("a b", ids=9)) == [2 / 4, 4 / 8]


def test_exact_match_with_what_does_not_count() -> None:
    def match(text: str, reference: str, **options: Any) -> float:
        return scores({"use": "exact_match", **options}, answer(text, reference=reference))[0]

    assert match("  Paris \n", "Paris") == 1
    assert match("New  York", "New York") == 1
    assert match("paris", "Paris") == 0
    assert match("paris", "Paris", ignore_case=True) == 1
    assert match("Paris.", "Paris") == 0
    assert match("Paris!", "Paris", ignore_punctuation=True) == 1
    assert match("6 times 7 is 41, no: #### 42", "42", extract=r"#### (\d+)") == 1
    assert match("#### 42 and then #### 43", "42", extract=r"#### (\d+)") == 0  # the last one counts
    assert match("it is 42", "42", extract=r"\d+") == 1
    assert match("nothing", "", extract=r"\d+") == 0


def test_exact_match_needs_a_reference() -> None:
    with pytest.raises(RewardError, match=r"row 7 .* has no reference") as caught:
        scores({"use": "exact_match"}, answer("a", reference="a"), answer("a", row=7))
    assert (caught.value.term, caught.value.rows) == ("exact_match", (7,))
    assert opened({"use": "exact_match"}, {"use": "json_valid"}).needs_reference == ("exact_match",)


def test_json_is_valid_or_not() -> None:
    texts = ['{"a": 1}', " [1, 2]\n", "3", '{"a": 1', "{'a': 1}", "", "NaN", '{"a": Infinity}', "[" * 5000, '{"a": 1} x']
    assert scores({"use": "json_valid"}, *texts) == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    keyed = {"use": "json_valid", "keys": ["name", "age"]}
    assert scores(keyed, '{"name": 1, "age": 2}', '{"name": 1}', "{}", '["name"]', "no") == [1, 2 / 3, 1 / 3, 1 / 3, 0]


def test_the_sum_is_weighted_and_the_terms_are_not() -> None:
    rewards = opened(
        {"use": "length", "max_words": 2, "weight": 0.5},
        {"use": "regex", "pattern": "a"},
        {"use": "regex", "pattern": "b", "weight": -2},
    )
    batch = rewards.score([answer("a b c d"), answer("a")])
    assert batch.terms == {"length": [0.5, 1.0], "regex": [1.0, 1.0], "regex-2": [1.0, 0.0]}
    assert batch.total == pytest.approx([0.5 * 0.5 + 1 - 2, 0.5 + 1])
    assert rewards.score([]).total == []
    assert all(math.isfinite(value) for value in batch.total)
