"""What `data.train_on`, a given prompt, `train: false` and `data.system` make of a conversation: the learned text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.data.encode import Encoded
from luthier.core.errors import DataError

Encode = Callable[..., list[Encoded]]
Learned = Callable[[Any, Encoded], list[str]]
TALK = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
    {"role": "assistant", "content": "a2"},
    {"role": "user", "content": "q3"},
    {"role": "assistant", "content": "a3"},
]


@pytest.fixture(params=["marked", "prefix"])
def tokenizer(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Any:
    if request.param == "prefix":
        tiny_tokenizer.chat_template = re.sub(r"\{% (end)?generation %\}", "", tiny_tokenizer.chat_template)
    return tiny_tokenizer


def muted(*numbers: int) -> list[dict[str, Any]]:
    return [message | ({"train": False} if at in numbers else {"train": True}) for at, message in enumerate(TALK)]


@pytest.mark.parametrize(
    ("row", "train_on", "expected"),
    [
        ({"messages": TALK}, "completion", ["a1<eos>", "a2<eos>", "a3<eos>"]),
        ({"messages": TALK}, "assistant", ["a1<eos>", "a2<eos>", "a3<eos>"]),
        ({"messages": TALK}, "last", ["a3<eos>"]),
        ({"messages": TALK[:5]}, "last", ["a2<eos>"]),
        ({"messages": TALK[:3], "completion": TALK[3:]}, "completion", ["a2<eos>", "a3<eos>"]),
        ({"messages": TALK[:3], "completion": TALK[3:]}, "assistant", ["a1<eos>", "a2<eos>", "a3<eos>"]),
        ({"messages": TALK[:3], "completion": TALK[3:]}, "last", ["a3<eos>"]),
        ({"messages": muted(1)}, "completion", ["a2<eos>", "a3<eos>"]),
        ({"messages": muted(3)}, "assistant", ["a1<eos>", "a3<eos>"]),
        ({"messages": muted(0, 3, 5)}, "completion", ["a1<eos>"]),
        ({"messages": muted(1)}, "last", ["a3<eos>"]),
        ({"messages": muted(3)[:3], "completion": muted(3)[3:]}, "completion", ["a3<eos>"]),
        # Every token but the first; a message that is not learned takes its header and the line break after it with it.
        ({"messages": TALK[:2]}, "all", ["q1<eos>\n<|assistant|>a1<eos>\n"]),
        ({"messages": muted(1)[:2]}, "all", ["q1<eos>\n"]),
        ({"messages": muted(0)[:2]}, "all", ["<|assistant|>a1<eos>\n"]),
        ({"messages": muted(1, 2)[:4]}, "all", ["q1<eos>\n", "<|assistant|>a2<eos>\n"]),
    ],
)
def test_what_is_learned(
    tokenizer: Any, encode: Encode, learned: Learned, row: dict[str, Any], train_on: str, expected: list[str]
) -> None:
    (got,) = encode(tokenizer, row, train_on=train_on)
    assert learned(tokenizer, got) == expected
    count = 0 if train_on == "all" else len(expected)
    assert (got.turns, got.marked, got.unclosed) == (count, count, 0)
    messages = [*row["messages"], *row.get("completion", ())]
    whole = tokenizer.apply_chat_template([{key: m[key] for key in ("role", "content")} for m in messages])["input_ids"]
    assert list(got.pieces[0].ids) == whole


@pytest.mark.parametrize("train_on", ["completion", "last", "all"])
def test_a_row_with_nothing_to_learn_is_dropped(tokenizer: Any, encode: Encode, train_on: str) -> None:
    (got,) = encode(tokenizer, {"messages": muted(0, 1)[:2]}, train_on=train_on)
    assert (got.dropped, got.pieces) == ("no token to learn", [])


@pytest.mark.parametrize(
    ("roles", "alternate"),
    [
        ("system user assistant user assistant", True),
        ("user assistant tool tool assistant user assistant", True),
        ("user assistant tool assistant", True),
        ("user user assistant", False),
        ("user assistant assistant", False),
        ("user tool assistant", False),
        ("user assistant tool user assistant", False),
    ],
)
def test_roles_that_do_not_alternate_are_counted(tokenizer: Any, encode: Encode, roles: str, alternate: bool) -> None:
    (got,) = encode(tokenizer, {"messages": [{"role": role, "content": "x"} for role in roles.split()]})
    assert got.notes == (() if alternate else ("roles do not alternate",))
    assert got.marked == roles.split().count("assistant")


def test_system_message_where_there_is_none(tokenizer: Any, encode: Encode, learned: Learned) -> None:
    own = {"role": "system", "content": "own"}
    first, second = encode(tokenizer, {"messages": TALK[:2]}, {"messages": [own, *TALK[:2]]}, system="Be brief.")
    assert tokenizer.decode(first.pieces[0].ids).startswith("<|system|>Be brief.<eos>\n<|user|>q1")
    assert tokenizer.decode(second.pieces[0].ids).startswith("<|system|>own<eos>\n<|user|>q1")
    assert learned(tokenizer, first) == learned(tokenizer, second) == ["a1<eos>"]
    (given,) = encode(tokenizer, {"messages": TALK[:3], "completion": TALK[3:4]}, system="Be brief.")
    assert learned(tokenizer, given) == ["a2<eos>"]


def test_marks_around_the_header_belong_to_their_turn(tiny_tokenizer: Any, encode: Encode, learned: Learned) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|assistant|>{{ m.content }}"
        "{% endgeneration %}{% generation %}<eos>{% endgeneration %}{% else %}<|{{ m.role }}|>{{ m.content }}<eos>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (got,) = encode(tiny_tokenizer, {"messages": muted(1, 5)})
    assert learned(tiny_tokenizer, got) == ["<|assistant|>a2<eos>"]
    assert (got.turns, got.marked, got.unclosed) == (1, 1, 0)


def test_marks_that_begin_within_a_token_take_it_whole(build: Any, encode: Encode) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:{% if m.role == 'assistant' %} {% generation %}{{ m.content }}"
        "{% endgeneration %}<|im_end|>{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    tokenizer = build.byte_level(template=template)
    (space,) = tokenizer(" fox", add_special_tokens=False)["input_ids"][:1]
    row = {"messages": [{"role": "user", "content": "quick"}, {"role": "assistant", "content": "fox jumps"}]}
    (got,) = encode(tokenizer, row)
    piece = got.pieces[0]
    first = list(piece.trained).index(1)
    assert tokenizer.decode([space]).startswith(" ")
    assert tokenizer.decode([token for token, mark in zip(piece.ids, piece.trained, strict=True) if mark]) == " fox jumps"
    assert piece.ids[first] == space
    assert got.unclosed == 1


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_a_template_that_rewrites_an_unlearned_turn_is_refused(tiny_tokenizer: Any, encode: Encode, train_on: str) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ loop.revindex }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}<eos>{% endgeneration %}{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>1{% endif %}"
    )
    with pytest.raises(DataError, match=r"assistant turn 1 \(messages\[1\]\)") as caught:
        encode(tiny_tokenizer, {"messages": muted(3) if train_on == "completion" else muted(1)}, train_on=train_on)
    assert caught.value.where == "rows.jsonl:1"
