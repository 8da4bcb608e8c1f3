"""Documents: their special tokens, their blocks, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.data.encode import Encoded
from luthier.core.errors import DataError

Encode = Callable[..., list[Encoded]]


def pieces(tokenizer: Any, encoded: Encoded) -> list[str]:
    for piece in encoded.pieces:
        assert list(piece.trained) == [0] + [1] * (len(piece.ids) - 1)
    return [tokenizer.decode(list(piece.ids)) for piece in encoded.pieces]


def with_bos(tokenizer: Any, *, eos: bool = False) -> Any:
    from tokenizers.processors import TemplateProcessing

    single = "<bos> $A <eos>" if eos else "<bos> $A"
    special = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


def test_each_document_ends_with_eos(tiny_tokenizer: Any, encode: Encode) -> None:
    assert [
        pieces(tiny_tokenizer, got) for got in encode(tiny_tokenizer, {"text": "ab"}, {"text": "c<eos>"}, kind="text")
    ] == [
        ["ab<eos>"],
        ["c<eos>"],
    ]


@pytest.mark.parametrize("eos", [False, True])
def test_bos_where_the_tokenizer_puts_it(tiny_tokenizer: Any, encode: Encode, eos: bool) -> None:
    tokenizer = with_bos(tiny_tokenizer, eos=eos)
    first, second = encode(tokenizer, {"text": "ab"}, {"text": "<bos>c"}, kind="text")
    assert pieces(tokenizer, first) == ["<bos>ab<eos>"]
    assert pieces(tokenizer, second) == ["<bos>c<eos>"]
    assert (first.length, first.cut, first.dropped, first.notes) == (4, (), "", ())


@pytest.mark.parametrize(
    ("too_long", "expected", "cut"),
    [
        ("split", ["<bos>abcdefg", "hijklmno", "pqr<eos>"], ()),
        ("truncate_right", ["<bos>abcdefg"], ("cut at the end to 8 tokens", "end of text cut off")),
        ("truncate_left", ["<bos>mnopqr<eos>"], ("cut at the start to 8 tokens",)),
        ("drop", [], ()),
    ],
)
def test_long_documents(
    tiny_tokenizer: Any, encode: Encode, too_long: str, expected: list[str], cut: tuple[str, ...]
) -> None:
    tokenizer = with_bos(tiny_tokenizer)
    (got,) = encode(tokenizer, {"text": "abcdefghijklmnopqr"}, kind="text", max_length=8, too_long=too_long)
    assert pieces(tokenizer, got) == expected
    assert (got.cut, got.length) == (cut, 20)
    assert got.dropped == ("longer than 8 tokens" if too_long == "drop" else "")


def test_a_block_of_one_token_is_left_out_and_counted(tiny_tokenizer: Any, encode: Encode) -> None:
    (got,) = encode(tiny_tokenizer, {"text": "a" * 16}, kind="text", max_length=8, too_long="split")
    assert pieces(tiny_tokenizer, got) == ["a" * 8, "a" * 8]
    assert got.cut == ("last block of a single token left out",)


def test_texts_need_no_chat_template_and_may_have_no_eos(tiny_tokenizer: Any, encode: Encode) -> None:
    tiny_tokenizer.chat_template = None
    tiny_tokenizer.eos_token = None
    empty, got = encode(tiny_tokenizer, {"text": ""}, {"text": "ab"}, kind="text")
    assert pieces(tiny_tokenizer, got) == ["ab"]
    assert got.notes == ("the tokenizer has no EOS token to end a text with",)
    assert empty == Encoded(dropped="no token to learn")


def test_a_metaspace_tokenizer_gives_what_it_gives(build: Any, encode: Encode) -> None:
    tokenizer = build.metaspace("first")
    texts = [" two  spaces ", *build.sentences]
    for text, got in zip(texts, encode(tokenizer, *({"text": text} for text in texts), kind="text"), strict=True):
        assert list(got.pieces[0].ids) == tokenizer(text)["input_ids"]


def test_tokens_that_change_with_those_around_them_are_refused(tiny_tokenizer: Any, encode: Encode) -> None:
    class Odd(type(tiny_tokenizer)):  # type: ignore[misc]
        def __call__(self, text: Any, add_special_tokens: bool = True, **options: Any) -> Any:
            encoded = super().__call__(text, add_special_tokens=add_special_tokens, **options)
            return {"input_ids": encoded["input_ids"] if not add_special_tokens else [1, 2, 3]}

    odd = Odd(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="which special tokens the tokenizer puts around a text"):
        encode(odd, {"text": "ab"}, kind="text")
