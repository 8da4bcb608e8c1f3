"""ChunkEncoder against the backend itself, over every kind of pre-tokenizer that it takes, and those that it must leave."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from luthier.core.data.encode import chunks
from luthier.core.data.encode.chunks import GPT2, SAFE, ChunkEncoder, alternatives, top_level

TEXTS = [
    "Hello there, it's 12:30 and we've 4500 reasons; don't they'll I'm HE'S",
    "def f(x):\n    return x ** 2  # square\n\n\n\tprint( f(10) )\r\n",
    "  leading and trailing   \n \n",
    "URLs: https://example.org/a?b=c&d=%20#e <b>tags</b> {{braces}} [x](y) .\n/path \x1c \x85 \u180e \xa0 x",
    "0 1 22 333 4444 55555 3.14159 -7 1e-5 1,000,000 ١٢٣ Ⅷ",
    "Ünïcödé naïve cafe\u0301 — “quoted” 漢字 かな 한글 עברית; emoji 😀👍🏽! ǅ ʰ ﬁ Å \u212a \u017f's 'ſ",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}"
    r"\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join([*(part + SHORT for part in TEKKEN.split("|")[:2]), r"\p{N}{1,3}", *TEKKEN.split("|")[3:]])
DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior)


def byte_level(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False} | options)


def sequence(*parts: Any) -> Any:
    return pre_tokenizers.Sequence(list(parts))


def build(pre_tokenizer: Any, *, normalizer: Any = None, tokens: tuple[AddedToken, ...] = ()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Enough merges that what is joined wrongly, or not joined, shows.
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False, special_tokens=["<end>"])
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
RAW = DEEPSEEK.replace(r"\r\n", "\r\n")  # its file has the characters themselves
KNOWN = {
    "gpt2": byte_level(use_regex=True),
    "digits": sequence(pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)),
    "runs of digits": sequence(pre_tokenizers.Digits(individual_digits=False), byte_level(use_regex=True)),
    "llama3": sequence(split(LLAMA3), byte_level()),
    "qwen2": sequence(split(QWEN2), byte_level()),
    "o200k": sequence(split(O200K), byte_level()),
    "tekken": sequence(split(TEKKEN), byte_level()),
    "cl100k": sequence(pre_tokenizers.Split(Regex(LLAMA3), "removed", invert=True), byte_level()),
    "deepseek": sequence(split(r"\p{N}{1,3}"), split(CJK), split(RAW), byte_level()),
}
TOKENS = (
    AddedToken("<|a|>", special=True, normalized=False),
    AddedToken("<|a|>b", special=True, normalized=False),
    AddedToken("<|", special=True, normalized=False),
    AddedToken("tool", special=False, normalized=True),
    AddedToken("    ", special=False, normalized=True),
)
MARKS = ["<|a|>", "<|a|>b", "<|a", "tool", "<end>", "    ", "it'S", " x", ". ", "é ", "a\n", "\u0301", "/", "'s"]
PIECES = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from([*TEXTS, *MARKS]))
)


@pytest.fixture(scope="module", params=[*KNOWN, "nfc"])
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, ChunkEncoder]:
    if request.param == "nfc":
        backend = build(KNOWN["qwen2"], tokens=TOKENS[:3], normalizer=normalizers.NFC())
    else:
        backend = build(KNOWN[request.param], tokens=TOKENS)
    encoder = ChunkEncoder.of(backend)
    assert encoder is not None
    return backend, encoder


def agree(backend: Tokenizer, encoder: ChunkEncoder, text: str) -> None:
    reference = backend.encode(text, add_special_tokens=False)
    ids, begins, ends, places = encoder.encode(text)
    assert list(ids) == reference.ids
    added = backend.get_added_tokens_decoder()
    expected = [place for place, token in enumerate(reference.ids) if token in added]
    assert places == expected
    assert list(zip(begins, ends, strict=True)) == [reference.offsets[place] for place in expected]


@pytest.mark.parametrize("text", [*TEXTS, "", " ", "x" * 500, "<|a|>b<|a|>tool<tool>  <end>", "é  ", "a  ", "é x  y"])
def test_ids_are_the_backends(both: tuple[Tokenizer, ChunkEncoder], text: str) -> None:
    agree(*both, text)
    agree(*both, text)  # from memory


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES)
def test_ids_are_the_backends_for_any_text(both: tuple[Tokenizer, ChunkEncoder], pieces: list[str]) -> None:
    agree(*both, "".join(pieces))


def test_every_known_alternative_is_tried_here() -> None:
    tried = {part for pattern in (GPT2, LLAMA3, QWEN2, O200K, TEKKEN, DEEPSEEK) for part in top_level(pattern)}
    others = SAFE - tried - {r"\p{N}{1,3}", CJK, r"\p{N}+"}
    whole = LLAMA3.replace(r"|\s+(?!\S)|\s+", "")
    for part in others:
        backend = build(sequence(split(part), split(f"{part}|{whole}|" + r"\s+(?!\S)|\s+"), byte_level()))
        encoder = ChunkEncoder.of(backend)
        assert encoder is not None
        for text in TEXTS:
            agree(backend, encoder, text)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(build(byte_level(use_regex=True, add_prefix_space=True)), id="a space is put before"),
        pytest.param(build(byte_level(use_regex=True), normalizer=normalizers.Lowercase()), id="lower case"),
        pytest.param(
            build(byte_level(use_regex=True), normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
            id="stripped",
        ),
        pytest.param(build(byte_level()), id="no split"),
        pytest.param(build(sequence(split(r"\p{L}+"), byte_level())), id="blanks stay with what stands before them"),
        pytest.param(build(sequence(split(LLAMA3 + r"|\p{L}+ \p{L}+"), byte_level())), id="two words"),
        pytest.param(build(sequence(split(r"(?<=a)\s|\s+"), byte_level())), id="looks back"),
        pytest.param(build(sequence(split(LLAMA3, "removed"), byte_level())), id="removed"),
        pytest.param(build(sequence(split(LLAMA3, "merged_with_next"), byte_level())), id="merged"),
        pytest.param(build(sequence(split(LLAMA3), byte_level(), split(" "))), id="ends with another"),
        pytest.param(build(pre_tokenizers.Whitespace()), id="not bytes"),
        pytest.param(build(byte_level(use_regex=True), tokens=(AddedToken("x", lstrip=True),)), id="strips to its left"),
        pytest.param(build(byte_level(use_regex=True), tokens=(AddedToken("x", single_word=True),)), id="whole words"),
        pytest.param(
            build(byte_level(use_regex=True), tokens=(AddedToken("x", normalized=True),), normalizer=normalizers.NFC()),
            id="normalised tokens",
        ),
        pytest.param(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")), id="no BPE"),
    ],
)
def test_a_tokenizer_of_another_build_is_left_to_its_backend(backend: Tokenizer) -> None:
    assert ChunkEncoder.of(backend) is None


def test_alternatives_find_the_longest() -> None:
    words = ["a", "ab", "abcd", "b", "<|x|>", "<|x|>y", "<|z", "[", "a|"]
    pattern = alternatives(words)
    assert pattern.split("abc abcd a|b <|x|>y<|x|>[") == [
        *("", "ab", "c ", "abcd", " ", "a|", "", "b", " ", "<|x|>y", "", "<|x|>", "", "[", "")
    ]
    many = [f"<|reserved_special_token_{number}|>" for number in range(300)]
    assert all(alternatives(many).fullmatch(token) for token in many)


def test_top_level_splits_outside_groups_and_classes() -> None:
    assert top_level(r"(?i:'s|'t)|[a|b\]|]+|\||x") == ["(?i:'s|'t)", r"[a|b\]|]+", r"\|", "x"]


def test_memory_of_chunks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MOST_CHUNKS", 50)
    backend = build(KNOWN["gpt2"])
    encoder = ChunkEncoder.of(backend)
    assert encoder is not None
    for number in range(300):
        agree(backend, encoder, f"word{number} " + "y" * 100)
    assert len(encoder._chunks) <= 50
    assert all(len(chunk) <= chunks.LONGEST_CHUNK for chunk in encoder._chunks)
