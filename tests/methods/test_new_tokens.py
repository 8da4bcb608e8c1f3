"""`new_tokens`: the tokenizer says the same with fewer tokens, loses nothing, and is saved and loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.contracts import NothingPatched
from luthier.core.environment import Environment
from luthier.core.errors import ConfigError, DataError
from luthier.plugins import new_tokens
from luthier.plugins.new_tokens import NewTokensConfig
from luthier.plugins.new_tokens.sources import bytes_by_character, from_bytes, read_vocabulary

from .vocabularies import LINES, extended, ids_of, sentencepiece_model, write_corpus

Load = Callable[[str], tuple[Any, Any]]
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)
TEXTS = [*LINES[:20], "say hello", "", "  two  spaces ", "<|user|>Grüße<eos>", "a\nb\tc", "🙂 emoji"]


def saved(tokenizer: Any, folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


# ---- vocabularies to merge


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def trained_bpe(corpus: Path, *, byte_level: bool, size: int = 420) -> Any:
    """A BPE trained on the lines: byte-level as GPT-2's, or with ▁ for spaces as SentencePiece's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>"))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<unk>", "<eos>"], show_progress=False
    )
    tokenizer.train([str(corpus)], trainer)
    return tokenizer


SOURCES = ("sentencepiece bpe", "sentencepiece unigram", "byte-level", "metaspace")


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, corpus: Path, tmp_path: Path) -> str:
    """A vocabulary that knows the lines well, in each of the forms."""
    if request.param.startswith("sentencepiece"):
        return str(sentencepiece_model(corpus, request.param.split()[1]))
    trained_bpe(corpus, byte_level=request.param == "byte-level").save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path)


def english(byte_level: bool, folder: Path) -> Any:
    """A target that knows English words, and German ones only by their letters."""
    from transformers import PreTrainedTokenizerFast

    path = folder / "english.txt"
    path.write_text("say hello to the world and the other worlds, hello again: schools in the en er ch scha\n" * 50)
    backend = trained_bpe(path, byte_level=byte_level, size=340 if byte_level else 60)
    if not byte_level:
        state = json.loads(backend.to_str())
        alphabet = sorted(set("".join(LINES)) - set(state["model"]["vocab"]))
        state["model"]["vocab"] |= {letter: len(state["model"]["vocab"]) + place for place, letter in enumerate(alphabet)}
        backend = type(backend).from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token=None if byte_level else "<unk>")


@pytest.mark.parametrize("byte_level", [True, False])
def test_a_vocabulary_joins_old_pieces_and_changes_nothing_else(byte_level: bool, source: str, tmp_path: Path) -> None:
    """The new tokenization is the old one with neighbours joined: the same text, in fewer tokens."""
    old = english(byte_level, tmp_path)
    new, said = extended(old, vocabulary=source)
    assert len(new) > len(old) + 20
    numbers = {words: int(count) for count, words in re.findall(r"(\d+) (of|were there|came|were left)", said)}
    assert numbers["of"] + numbers.get("came", 0) == len(new) - len(old)
    pieces = read_vocabulary(source)
    assert numbers["of"] + numbers["were there"] + numbers.get("were left", 0) == len(pieces)
    assert "unigram" in source or numbers.get("came", 0) < 0.3 * numbers["of"]
    for piece in pieces:  # each of them is what the tokenizer now makes of its own text
        text = from_bytes(piece, "bytes" if byte_level else "metaspace")
        assert text is None or [part.value for part in new.backend_tokenizer.model.tokenize(text)] == [text]
    vocabulary = old.get_vocab()
    assert vocabulary.items() <= new.get_vocab().items()
    assert sorted(new.get_vocab().values()) == list(range(len(new)))
    before = after = 0
    for text in [*LINES[:40], "say hello to the world", "Wissenschaft und schools"]:
        pieces, joined = (one.convert_ids_to_tokens(ids_of(one, text)) for one in (old, new))
        assert "".join(pieces) == "".join(joined)
        cuts, kept = ({sum(map(len, parts[:place])) for place in range(len(parts) + 1)} for parts in (pieces, joined))
        assert kept <= cuts
        assert new.decode(ids_of(new, text)) == old.decode(ids_of(old, text))
        before, after = before + len(pieces), after + len(joined)
    assert after < 0.75 * before


@pytest.mark.parametrize("byte_level", [True, False])
def test_it_is_saved_and_loaded(byte_level: bool, source: str, tmp_path: Path) -> None:
    new, _ = extended(english(byte_level, tmp_path), vocabulary=source, tokens=("<|note|>",), special=True)
    again = saved(new, tmp_path / "saved")
    assert again.get_vocab() == new.get_vocab()
    assert len(again) == len(new)
    for text in [*TEXTS, "x<|note|>Grüße<eos>"]:
        assert ids_of(again, text) == ids_of(new, text)
    ids = ids_of(new, "hello<|note|>")
    assert "<|note|>" not in again.decode(ids, skip_special_tokens=True)
    assert "<|note|>" in again.decode(ids)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GemmaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer"])
def test_classes_that_rebuild_their_tokenizer_on_loading(name: str, source: str, tmp_path: Path) -> None:
    """These read vocabulary and merges from tokenizer.json, and make the rest anew."""
    import transformers

    byte_level = name in ("Qwen2Tokenizer", "GPT2Tokenizer")
    state = json.loads(english(byte_level, tmp_path).backend_tokenizer.to_str())["model"]
    extra = {} if byte_level else {"unk_token": "<unk>"}
    old = getattr(transformers, name)(
        vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]], eos_token="<eos>", pad_token="<pad>", **extra
    )
    new, _ = extended(old, vocabulary=source, tokens=("<|note|>",))
    again = saved(new, tmp_path / "saved")
    assert type(again).__name__ == name
    assert again.get_vocab() == new.get_vocab()
    for text in [*LINES[:10], "Grüße<|note|>say hello<eos>"]:
        assert ids_of(again, text) == ids_of(new, text)
        assert len(ids_of(new, text)) < len(ids_of(old, text))
        assert new.decode(ids_of(new, text)) == text


def test_pieces_are_carried_over_as_bytes(corpus: Path, tmp_path: Path) -> None:
    """The three forms of one word, and what is no piece at all."""
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(bytes_by_character()) == set(ByteLevel.alphabet())
    for text in ("Grüße", " naïve", "日本", "\n\t\x00\x7f\xad"):
        written = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
        assert bytes(bytes_by_character()[character] for character in written) == text.encode()
    pieces = read_vocabulary(str(sentencepiece_model(corpus, "bpe")))
    assert b" der" in pieces
    assert not {b"<unk>", b"<s>", b"</s>", b""} & set(pieces)
    trained_bpe(corpus, byte_level=True).save(str(tmp_path / "tokenizer.json"))
    pieces = read_vocabulary(str(tmp_path))
    assert b" der" in pieces
    assert "ü".encode()[:1] in pieces  # half a character
    assert b"<eos>" not in pieces


def test_half_characters_stay_out_of_a_tokenizer_of_whole_ones(corpus: Path, tmp_path: Path) -> None:
    trained_bpe(corpus, byte_level=True).save(str(tmp_path / "tokenizer.json"))
    _, said = extended(english(False, tmp_path), vocabulary=str(tmp_path))
    assert "no whole characters" in said


# ---- listed tokens


def test_listed_tokens_are_found_longest_first(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("<|note|>\n hello\n\nhell\nhello world\nnote 日本\n", encoding="utf-8")
    new, said = extended(tiny_tokenizer, tokens=("<a>", "<|note|>"), file=str(tmp_path / "tokens.txt"))
    assert "6 of 6 tokens added" in said
    for text in ("say hello, hello world", "x<|note|><a>y", "note 日本!", "shell", *TEXTS):
        assert new.decode(ids_of(new, text)) == text
    pieces = new.convert_ids_to_tokens(ids_of(new, "say hello world<a>shell"))
    assert pieces == ["s", "a", "y", " hello", "Ġ", "w", "o", "r", "l", "d", "<a>", "s", "hell"]
    assert ids_of(new, "say") == ids_of(tiny_tokenizer, "say")


def test_whole_words_only(tiny_tokenizer: Any) -> None:
    new, _ = extended(tiny_tokenizer, tokens=("cat",), whole_word=True)
    cat = new.convert_tokens_to_ids("cat")
    assert cat in ids_of(new, "a cat.")
    assert cat not in ids_of(new, "concatenate")
    anywhere, _ = extended(tiny_tokenizer, tokens=("cat",))
    assert cat in ids_of(anywhere, "concatenate")


def test_known_tokens_are_counted(tiny_tokenizer: Any) -> None:
    _, said = extended(tiny_tokenizer, tokens=("<eos>", "a", "<b>"))
    assert "1 of 3 tokens added, 2 were in the vocabulary already" in said
    with pytest.raises(NothingPatched, match="already"):
        extended(tiny_tokenizer, tokens=("<eos>", "a"))


def test_a_token_that_would_not_come_back_is_refused(tiny_tokenizer: Any) -> None:
    """Byte-level decoders take `é` for the byte E9; with a character that stands for no byte the whole is taken as text."""
    with pytest.raises(ConfigError, match="café"):
        extended(tiny_tokenizer, tokens=("café",))
    new, _ = extended(tiny_tokenizer, tokens=(" café",))
    assert new.decode(ids_of(new, "un café noir")) == "un café noir"


def test_files_that_cannot_be_used(tiny_tokenizer: Any, tmp_path: Path, load: Load) -> None:
    _, profile = load("llama")
    missing = NewTokensConfig(vocabulary=str(tmp_path / "none.model"))
    assert "there is no" in new_tokens.supports(profile, HERE, missing).reason
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"\x00\x01 no model")
    without = new_tokens.supports(profile, HERE, NewTokensConfig(vocabulary=str(broken)))
    assert without.kind == "missing"
    assert "sentencepiece" in without.reason
    with pytest.raises(DataError, match="no SentencePiece model"):
        extended(tiny_tokenizer, vocabulary=str(broken))
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {"a": 0}}}')
    with pytest.raises(DataError, match="WordPiece"):
        extended(tiny_tokenizer, vocabulary=str(tmp_path))
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        extended(tiny_tokenizer, file=str(tmp_path / "latin.txt"))
    assert new_tokens.memory(profile, NewTokensConfig(file=str(tmp_path / "latin.txt"))).added == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no token"),
        ({"tokens": ("",)}, "empty"),
        ({"tokens": ("a", "a")}, "twice"),
        ({"vocabulary": "x", "special": True}, "plain"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NewTokensConfig(**options)
