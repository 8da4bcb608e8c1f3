"""Ids and prompt boundaries against the slow, obviously right way, for tokenizers of every build."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import platformdirs
import pytest

from luthier.core.data.encode import Encoded
from luthier.core.data.encode.tokens import BackendTokens, ChunkTokens, Tokens, tokens_of
from luthier.core.errors import DataError

Encode = Callable[..., list[Encoded]]
KINDS: dict[str, tuple[type[Tokens], Callable[[SimpleNamespace], Any]]] = {
    "byte level": (ChunkTokens, lambda build: build.byte_level()),
    "metaspace first": (BackendTokens, lambda build: build.metaspace("first")),
    "metaspace always": (BackendTokens, lambda build: build.metaspace("always")),
    "metaspace never, unsplit": (BackendTokens, lambda build: build.metaspace("never", split=False)),
    "legacy llama": (BackendTokens, lambda build: build.legacy_llama()),
    "word piece": (BackendTokens, lambda build: build.word_piece()),
    "unigram": (BackendTokens, lambda build: build.unigram()),
    "strips to the right": (BackendTokens, lambda build: build.byte_level(tokens=stripping("rstrip"))),
    "strips to the left": (BackendTokens, lambda build: build.byte_level(tokens=stripping("lstrip"))),
    "normalised tokens": (BackendTokens, lambda build: build.word_piece(tokens=stripping("normalized"))),
    "no added tokens": (ChunkTokens, lambda build: build.byte_level(tokens=())),
    "other added tokens": (ChunkTokens, lambda build: build.byte_level(tokens=more_tokens())),
}
ALPHABET = [
    "a",
    "The",
    " quick",
    "fox",
    " ",
    "  ",
    "\n",
    "\n\n",
    ".",
    "'s",
    "5",
    "é",
    "e\u0301",
    "漢字",
    "😀",
    "<|im_end|>",
    "<|",
    "tool",
]


def stripping(flag: str) -> tuple[Any, ...]:
    from tokenizers import AddedToken

    options = {"normalized": False} | {flag: True}
    return tuple(AddedToken(text, special=True, **options) for text in ("<|im_start|>", "<|im_end|>"))


def more_tokens() -> tuple[Any, ...]:
    from tokenizers import AddedToken

    plain = [AddedToken(text, special=True, normalized=False) for text in ("<|im_start|>", "<|im_end|>", "<|im_end|>\n\n")]
    return (*plain, AddedToken("tool", special=False, normalized=True), AddedToken("\n\n", special=False, normalized=True))


def texts(seed: int, count: int, build: SimpleNamespace) -> list[str]:
    chance = random.Random(seed)
    drawn = ["".join(chance.choices([*ALPHABET, "tool", *build.sentences], k=chance.randint(1, 8))) for _ in range(count)]
    return [text if text.strip() else "x" + text for text in drawn]


def is_right(tokenizer: Any, whole: list[int], messages: list[dict[str, str]], at: int) -> bool:
    """Whether the prompt of an answer, and the conversation up to its last visible token, begin the whole."""
    prompt = tokenizer.apply_chat_template(messages[:at], add_generation_prompt=True)["input_ids"]
    turn = tokenizer.apply_chat_template(messages[: at + 1])["input_ids"]
    while not tokenizer.decode(turn[-1:]).strip():
        turn.pop()
    return whole[: len(prompt)] == prompt and whole[: len(turn)] == turn


@pytest.fixture(params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest, build: SimpleNamespace) -> Any:
    kind, make = KINDS[request.param]
    made = make(build)
    assert type(tokens_of(made)) is kind
    return made


def test_ids_are_those_of_the_tokenizer(tokenizer: Any, build: SimpleNamespace) -> None:
    tokens = tokens_of(tokenizer)
    for _ in range(2):  # the second time from memory
        for text, whole in zip(found := texts(1, 60, build), tokens.encode(found), strict=True):
            assert list(whole.ids) == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_a_prefix_of_the_text_is_one_of_the_tokens_where_the_tokenizer_says_so(
    tokenizer: Any, build: SimpleNamespace
) -> None:
    tokens = tokens_of(tokenizer)
    chance = random.Random(2)
    outcomes = set()
    contents = texts(3, 300, build)
    for number in range(0, len(contents), 3):
        user, answer, other = contents[number : number + 3]
        text = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        (whole,) = tokens.encode([text])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        cuts = [text[: chance.randint(0, len(text))] for _ in range(4)]
        header = text.index("assistant\n") + len("assistant\n")
        for part in [*cuts, text, text[:header], text[: header - 1], other, text[:header] + other]:
            expected = tokenizer(part, add_special_tokens=False)["input_ids"]
            is_prefix = ids[: len(expected)] == expected
            assert tokens.prefix(whole, part) == (len(expected) if is_prefix else None), (text, part)
            outcomes.add(is_prefix)
    assert outcomes == {True, False}


def test_random_conversations_are_as_apply_chat_template_gives_them(
    tokenizer: Any, build: SimpleNamespace, encode: Encode
) -> None:
    chance = random.Random(4)
    accepted = 0
    for number in range(60):
        messages = []
        contents = texts(100 + number, 6, build)
        for turn in range(chance.randint(1, 3)):
            messages += [
                {"role": "user", "content": contents[2 * turn]},
                {"role": "assistant", "content": contents[2 * turn + 1]},
            ]
        whole = tokenizer.apply_chat_template(messages)["input_ids"]
        begins = []
        for at in range(1, len(messages), 2):
            prompt = tokenizer.apply_chat_template(messages[:at], add_generation_prompt=True)["input_ids"]
            begins.append(len(prompt) if whole[: len(prompt)] == prompt else None)
        try:
            (piece,) = encode(tokenizer, {"messages": messages})[0].pieces
        except DataError:
            # Some builds join what stands on both sides of a boundary: only rows where that happens may be refused.
            assert not all(is_right(tokenizer, whole, messages, at) for at in range(1, len(messages), 2))
            continue
        accepted += 1
        assert list(piece.ids) == whole
        found = [at for at in range(1, len(whole)) if piece.trained[at] and not piece.trained[at - 1]]
        assert found == begins
    assert accepted > 10


def test_a_tokenizer_with_a_call_of_its_own_is_asked_itself(build: SimpleNamespace, encode: Encode) -> None:
    made = build.byte_level()

    class Own(type(made)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    own = Own(tokenizer_object=made.backend_tokenizer)
    own.chat_template = made.chat_template
    assert type(tokens_of(own)) is Tokens
    row = {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d"}] * 2}
    assert encode(own, row) == encode(made, row)


def test_truncation_and_padding_saved_with_a_tokenizer_are_not_applied(build: SimpleNamespace) -> None:
    made = build.metaspace("first")
    plain = made("The quick brown fox")["input_ids"]
    made.backend_tokenizer.enable_truncation(3)
    made.backend_tokenizer.enable_padding(length=50)
    assert [list(whole.ids) for whole in tokens_of(made).encode(["The quick brown fox"])] == [plain]


def test_a_real_tokenizer(build: SimpleNamespace) -> None:
    folder = Path(platformdirs.user_cache_dir("luthier")) / "models" / "smollm2-135m"  # the tests' own cache is empty
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("SmolLM2 is not in the cache")
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(folder)
    tokens = tokens_of(real)
    assert type(tokens) is ChunkTokens
    for text, whole in zip(found := texts(5, 300, build), tokens.encode(found), strict=True):
        assert list(whole.ids) == real(text, add_special_tokens=False)["input_ids"], text
