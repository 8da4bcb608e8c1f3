"""plugins/preference: a better and a worse answer, in the ways that public data sets write it."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.extensions import RowError
from luthier.core.tagged import Tags
from luthier.plugins import preference
from luthier.plugins.preference import comparison, hh_rlhf, pairs, ranking
from luthier.plugins.preference.comparison import ComparisonConfig

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
WHAT = {"role": "assistant", "content": "What?"}
MORE = {"role": "user", "content": "More?"}
BRIEF = {"role": "system", "content": "Be brief."}
PAIR = {"messages": [HI], "chosen": [HELLO], "rejected": [WHAT]}


def only(name: str, row: dict[str, Any]) -> None:
    """The format `name` takes the row, and none beside it."""
    assert [item.name for item in preference.luthier_data_formats() if item.detect(row)] == [name]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"question": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"input": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [HI], "chosen": [HELLO], "rejected": [WHAT]},
        {"prompt": "Hi", "chosen": HELLO, "rejected": [WHAT]},
        {"chosen": [HI, HELLO], "rejected": [HI, WHAT]},
        {"prompt": "Hi", "chosen": [HI, HELLO], "rejected": [HI, WHAT], "messages": [HI, HELLO]},
    ],
)
def test_shapes_of_trl(row: dict[str, Any]) -> None:
    only("preference", row)
    assert pairs.convert(row) == PAIR


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "better", "worse"),
    [
        ([HI, HELLO, MORE, HELLO], [HI, HELLO, MORE, WHAT], [HI, HELLO, MORE], [HELLO], [WHAT]),
        ([BRIEF, HI, HELLO], [BRIEF, HI, WHAT, MORE, HELLO], [BRIEF, HI], [HELLO], [WHAT, MORE, HELLO]),
        # One ends where the other goes on with the user: the answer that both have is where they part.
        ([HI, HELLO], [HI, HELLO, MORE, WHAT], [HI], [HELLO], [HELLO, MORE, WHAT]),
        ([HI, HELLO, HI, HELLO], [HI, HELLO, MORE, WHAT], [HI], [HELLO, HI, HELLO], [HELLO, MORE, WHAT]),
    ],
)
def test_the_prompt_is_the_longest_beginning_before_an_answer(
    chosen: list[Any], rejected: list[Any], prompt: list[Any], better: list[Any], worse: list[Any]
) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    assert pairs.convert(row) == {"messages": prompt, "chosen": better, "rejected": worse}


def test_an_answer_that_repeats_an_answer_of_the_prompt() -> None:
    row = {"prompt": [HI, HELLO, MORE], "chosen": [HI, HELLO, MORE, HELLO], "rejected": [WHAT]}
    assert pairs.convert(row) == {"messages": [HI, HELLO, MORE], "chosen": [HELLO], "rejected": [WHAT]}


def test_system_and_tools() -> None:
    row = {"system": "Be brief.", "question": "Hi", "chosen": "Hello!", "rejected": "What?", "tools": '[{"name": "f"}]'}
    assert pairs.convert(row) == PAIR | {"messages": [BRIEF, HI], "tools": [{"name": "f"}]}


@pytest.mark.parametrize(
    ("scores", "margin"),
    [
        ({"score_chosen": 8.5, "score_rejected": 6}, 2.5),
        ({"chosen_score": 1, "rejected_score": 4}, -3.0),
        ({"chosen_rating": 9.0, "rejected_rating": 3.0}, 6.0),
        ({"chosen-rating": 4.5, "rejected-rating": 3.0}, 1.5),
        ({"rating_chosen": 5, "rating_rejected": 2}, 3.0),
        ({"margin": 0.25, "score_chosen": 8.5, "score_rejected": 6}, 0.25),
    ],
)
def test_scores_become_the_margin(scores: dict[str, float], margin: float) -> None:
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", **scores}
    assert pairs.convert(row) == PAIR | {"margin": margin}


def test_one_score_alone_is_no_margin() -> None:
    row = {
        "prompt": "Hi",
        "chosen": "Hello!",
        "rejected": "What?",
        "score_chosen": 8.5,
        "score_rejected": None,
        "margin": None,
    }
    assert pairs.convert(row) == PAIR


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"chosen": "a", "rejected": "b"}, "prompt", "is missing"),
        ({"prompt": "a", "chosen": "b"}, "rejected", "is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected", "is an empty answer"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen", "must be a string or a list of messages, not a number"),
        ({"chosen": [HI, HELLO], "rejected": [MORE, WHAT]}, "rejected", "no beginning with a prompt in common"),
        ({"chosen": [HI], "rejected": [HI, WHAT]}, "rejected", "no beginning with a prompt in common"),
        ({"prompt": "a", "chosen": [HI, HELLO], "rejected": [WHAT]}, "chosen", "begins neither with an answer nor"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "big"}, "margin", "must be a number, not a string"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": True, "score_rejected": 1},
            "score_chosen",
            "a number",
        ),
    ],
)
def test_what_is_wrong(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        pairs.convert(row)
    assert caught.value.column == column


def test_two_conversations_that_are_the_same() -> None:
    """Nothing to prefer, and no fault either: TRL takes them, and the report counts them."""
    row = pairs.convert({"chosen": [HI, HELLO], "rejected": [HI, HELLO]})
    assert row == {"messages": [HI], "chosen": [HELLO], "rejected": [HELLO]}


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": WHAT,
        },
        {"messages": [HI], "chosen": HELLO, "rejected": WHAT},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": "Hello!", "rejected": "What?"},
        {"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "What?"},
        {"instruction": "Hi", "output": ["Hello!", "What?"]},
    ],
)
def test_shapes_of_a_ranking(row: dict[str, Any]) -> None:
    only("ranking", row)
    assert ranking.convert(row, Tags()) == PAIR


def test_a_ranking_with_everything() -> None:
    row = {
        "instruction": "Greet.", "input": "Ann", "history": [["Hi", "Hello!"]], "system": "Be brief.", "chosen": "Hello!",
        "rejected": "What?", "chosen_rating": 5, "rejected_rating": 2,
    }  # fmt: skip
    greet = {"role": "user", "content": "Greet.\nAnn"}
    assert ranking.convert(row, Tags()) == PAIR | {"messages": [BRIEF, HI, HELLO, greet], "margin": 3.0}


def test_a_ranking_under_other_tags() -> None:
    tags = Tags(role_tag="who", content_tag="what", user_tag="Ann", assistant_tag="Bob")
    row = {"conversations": [{"who": "Ann", "what": "Hi"}], "chosen": {"who": "Bob", "what": "Hello!"}}
    assert ranking.convert(row | {"rejected": {"who": "Bob", "what": "What?"}}, tags) == PAIR


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"conversations": [HI, HELLO], "chosen": HELLO, "rejected": WHAT}, "conversations[1]", "ends with an answer"),
        ({"conversations": [HI], "chosen": HI, "rejected": WHAT}, "chosen", "must be an answer of the assistant"),
        ({"conversations": [HI], "chosen": HELLO}, "rejected", "is missing"),
        ({"instruction": "a", "output": ["b"]}, "output", "the better and the worse"),
        ({"instruction": "a", "output": ["b", ""]}, "output[1]", "is an empty answer"),
        ({"instruction": "a"}, "output", "is missing"),
    ],
)
def test_what_is_no_ranking(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        ranking.convert(row, Tags())
    assert caught.value.column == column


def test_texts_of_hh_rlhf() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: More?\n\nHow?\n\nAssistant:"
    row = {"chosen": f"{start} Hello!", "rejected": f"{start} What?\n"}
    only("hh_rlhf", row)
    prompt = [HI, HELLO, {"role": "user", "content": "More?\n\nHow?"}]
    assert hh_rlhf.convert(row) == {"messages": prompt, "chosen": [HELLO], "rejected": [WHAT]}
    with_prompt = {"prompt": start, "chosen": " Hello!", "rejected": "What?"}
    only("hh_rlhf", with_prompt)
    assert hh_rlhf.convert(with_prompt) == hh_rlhf.convert(row)


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"chosen": "Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi"}, "chosen", "does not begin with Human:"),
        ({"chosen": "\n\nAssistant: a", "rejected": "\n\nHuman: Hi"}, "chosen", "does not begin with Human:"),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: a"},
            "chosen",
            "is an empty answer",
        ),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi"}, "rejected", "is an empty answer"),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "a", "rejected": ""}, "rejected", "is an empty answer"),
    ],
)
def test_what_is_no_hh_rlhf(row: dict[str, Any], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        hh_rlhf.convert(row)
    assert caught.value.column == column


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response_0": "Hello!", "response_1": "What?", "better_response_id": 0},
        {"prompt": "Hi", "response_0": "What?", "response_1": "Hello!", "better_response_id": 1},
        {"history": "Hi", "human_ref_A": "Hello!", "human_ref_B": "What?", "labels": 1},
        {"history": "Hi", "human_ref_A": "What?", "human_ref_B": "Hello!", "labels": 0},
        {"conversation_a": [HI, HELLO], "conversation_b": [HI, WHAT], "winner": "model_a"},
        {"conversation_a": [HI, WHAT], "conversation_b": [HI, HELLO], "winner": "model_b"},
    ],
)
def test_comparisons(row: dict[str, Any]) -> None:
    only("comparison", row)
    assert comparison.convert(row, ComparisonConfig()) == PAIR


def test_a_verdict_of_another_column() -> None:
    row = {"prompt": "Hi", "response_0": "Hello!", "response_1": "What?", "better_response_id": 1, "safer_response_id": 0}
    assert comparison.convert(row, ComparisonConfig(verdict="safer_response_id")) == PAIR


@pytest.mark.parametrize(
    ("row", "options", "column", "words"),
    [
        ({"prompt": "Hi"}, {}, "better_response_id", "is missing"),
        (
            {"conversation_a": [HI, HELLO], "conversation_b": [HI, WHAT], "winner": "tie"},
            {},
            "winner",
            "'tie' is not 'model_a' or",
        ),
        ({"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": True}, {}, "labels", "True is not 1 or 0"),
        ({"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 1}, {"verdict": "vote"}, "vote", "is missing"),
    ],
)
def test_what_is_no_comparison(row: dict[str, Any], options: dict[str, str], column: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        comparison.convert(row, ComparisonConfig(**options))
    assert caught.value.column == column
