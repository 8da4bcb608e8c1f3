"""Rows that are too long: what is left of them, token by token, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.data.encode import Encoded, Encoder
from luthier.core.errors import DataError

Encode = Callable[..., list[Encoded]]
# One token for each byte; <bos>, <|user|>, <|assistant|> and <eos> are one as well.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_tokenizer: Any) -> Any:
    tiny_tokenizer.chat_template = TEMPLATE
    return tiny_tokenizer


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def shown(tokenizer: Any, encoded: Encoded) -> list[str]:
    """Each piece's text, with what is learned in brackets."""
    found = []
    for piece in encoded.pieces:
        text, inside = "", 0
        for token, mark in zip(piece.ids, piece.trained, strict=True):
            text += ("[" if mark > inside else "]" if mark < inside else "") + tokenizer.decode([token])
            inside = mark
        found.append(text + "]" * inside)
    return found


LEFT, RIGHT = "cut at the start to 12 tokens", "cut at the end to 12 tokens"
TURN, START, NOTHING = "end of turn cut off", "start of an answer cut off", "no token to learn within 12 tokens"


LRT, RT = (LEFT, RIGHT, TURN), (RIGHT, TURN)
HEADED, ASKS = "<bos><|user|>", "<eos><|assistant|>"


@pytest.mark.parametrize(
    ("how", "texts", "expected", "cut", "dropped"),
    [
        ("drop", ("abc", "defg"), "<bos><|user|>abc<eos><|assistant|>[defg<eos>]", (), ""),
        ("drop", ("abc", "defgh"), None, (), "longer than 12 tokens"),
        ("truncate_right", ("abc", "defg"), "<bos><|user|>abc<eos><|assistant|>[defg<eos>]", (), ""),
        ("truncate_right", ("abc", "defgh"), "<bos><|user|>abc<eos><|assistant|>[defgh]", (RIGHT, TURN), ""),
        ("truncate_right", ("abcdefghij", "k"), None, (), NOTHING),
        (
            "truncate_right",
            ("a", "b", "cdefghij", "k"),
            "<bos><|user|>a<eos><|assistant|>[b<eos>]<|user|>cdef",
            (RIGHT,),
            "",
        ),
        ("truncate_left", ("abc", "defgh"), "<bos>abc<eos><|assistant|>[defgh<eos>]", (LEFT,), ""),
        ("truncate_left", ("abc", "defghijk"), "<bos><eos><|assistant|>[defghijk<eos>]", (LEFT,), ""),
        ("truncate_left", ("abc", "defghijklmn"), "<bos>[efghijklmn<eos>]", (LEFT, START), ""),
        ("truncate_left", ("a", "b", "cdefgh", "k"), HEADED + "cdefgh<eos><|assistant|>[k<eos>]", (LEFT,), ""),
    ],
)
def test_conversations(
    tokenizer: Any,
    encode: Encode,
    how: str,
    texts: tuple[str, ...],
    expected: str | None,
    cut: tuple[str, ...],
    dropped: str,
) -> None:
    (got,) = encode(tokenizer, {"messages": talk(*texts)}, max_length=12, too_long=how)
    assert shown(tokenizer, got) == ([expected] if expected else [])
    assert (got.cut, got.dropped) == (cut, dropped)
    assert got.length == 1 + sum(len(text) + 2 for text in texts)
    assert all(len(piece.ids) <= 12 for piece in got.pieces)


def test_without_bos_nothing_stays_at_the_start(tokenizer: Any, encode: Encode) -> None:
    tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    (got,) = encode(tokenizer, {"messages": talk("abcd", "efghi")}, max_length=12, too_long="truncate_left")
    assert shown(tokenizer, got) == ["abcd<eos><|assistant|>[efghi<eos>]"]
    (got,) = encode(tokenizer, {"messages": talk("a", "bcdefghijklmnop")}, max_length=12, too_long="truncate_left")
    assert shown(tokenizer, got) == ["f[ghijklmnop<eos>]"], "nothing predicts the first token of a row"


def test_every_token_is_learned_and_its_end_cut(tokenizer: Any, encode: Encode) -> None:
    (got,) = encode(tokenizer, {"messages": talk("abc", "defgh")}, max_length=12, too_long="truncate_right", train_on="all")
    assert shown(tokenizer, got) == ["<bos>[<|user|>abc<eos><|assistant|>defgh]"]
    assert got.cut == (RIGHT, TURN)


@pytest.mark.parametrize(
    ("how", "prompt", "answers", "expected", "cut"),
    [
        # The prompt gives way, for both alike.
        (
            "truncate_left",
            "abc",
            ("de", "fghij"),
            ["<bos>abc" + ASKS + "[de<eos>]", "<bos>abc" + ASKS + "[fghij<eos>]"],
            (LEFT,),
        ),
        # Down to half of the length; then the answer's end.
        (
            "truncate_left",
            "abcdef",
            ("g", "hijklmnopq"),
            ["<bos>def" + ASKS + "[g<eos>]", "<bos>def" + ASKS + "[hijklm]"],
            LRT,
        ),
        (
            "truncate_left",
            "a",
            ("b", "cdefghijk"),
            [HEADED + "a" + ASKS + "[b<eos>]", HEADED + "a" + ASKS + "[cdefghi]"],
            RT,
        ),
        (
            "truncate_right",
            "abc",
            ("de", "fghij"),
            [HEADED + "abc" + ASKS + "[de<eos>]", HEADED + "abc" + ASKS + "[fghij]"],
            RT,
        ),
    ],
)
def test_preferences(
    tokenizer: Any,
    encode: Encode,
    how: str,
    prompt: str,
    answers: tuple[str, str],
    expected: list[str],
    cut: tuple[str, ...],
) -> None:
    row = pair(prompt, *answers)
    (got,) = encode(tokenizer, row, kind="preference", max_length=12, too_long=how)
    assert shown(tokenizer, got) == expected
    assert got.cut == cut
    assert got.length == 5 + len(prompt) + max(map(len, answers))


def test_a_pair_is_dropped_together(tokenizer: Any, encode: Encode) -> None:
    for too_long, reason in (("drop", "longer than 12 tokens"), ("truncate_right", NOTHING)):
        prompt = "abc" if too_long == "drop" else "abcdefgh"
        (got,) = encode(tokenizer, pair(prompt, "d", "efghij"), kind="preference", max_length=12, too_long=too_long)
        assert (got.pieces, got.dropped) == ([], reason)


def test_prompts_lose_their_start(tokenizer: Any, encode: Encode) -> None:
    row = {"messages": talk("abcdefghij")}
    (got,) = encode(tokenizer, row, kind="prompt", max_length=12, too_long="truncate_left")
    assert shown(tokenizer, got) == ["<bos>bcdefghij<eos><|assistant|>"]
    assert encode(tokenizer, row, kind="prompt", max_length=12)[0].dropped == "longer than 12 tokens"


@pytest.mark.parametrize(
    ("kind", "how"),
    [*((kind, "split") for kind in ("conversation", "preference", "unpaired", "prompt")), ("prompt", "truncate_right")],
)
def test_what_a_kind_cannot_have(tokenizer: Any, encoder: Callable[..., Encoder], kind: str, how: str) -> None:
    with pytest.raises(DataError, match=f"'{how}' is impossible for {kind} data") as caught:
        encoder(tokenizer, kind, too_long=how)
    assert caught.value.where == "data.too_long"
    assert "drop" in caught.value.fix


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    answers = {"chosen": chosen, "rejected": rejected}
    return {"messages": talk(prompt)} | {key: [{"role": "assistant", "content": text}] for key, text in answers.items()}
