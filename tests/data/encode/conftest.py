"""Fixtures of the encoder's tests: rows to encode, and tokenizers of every build, trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.config.schema import DataConfig, SourceConfig
from luthier.core.data.encode import Encoded, Encoder, make_encoder
from luthier.core.data.sources import SourceRow

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "The quick brown fox jumps over the lazy dog, doesn't it? It's 12:30 now.",
    "def f(x):\n    return x ** 2  # square\n\n\n\tprint( f(10) )\r\n",
    "Ünïcödé naïve café — “quoted”, 漢字 かな 한글 עברית; emoji 😀👍🏽!",
    "  leading and trailing   \n \n",
    "0 1 22 333 4444 3.14159 -7 1e-5 1,000,000",
]


def encoder_of(tokenizer: Any, kind: str = "conversation", **data: Any) -> Encoder:
    config = DataConfig(train=(SourceConfig(path="rows.jsonl"),), **{"max_length": 9999} | data)
    return make_encoder(tokenizer, config, kind)  # type: ignore[arg-type]


@pytest.fixture
def encoder() -> Callable[..., Encoder]:
    """`encoder(tokenizer, kind="conversation", **data)`: made with these keys of `data:`."""
    return encoder_of


@pytest.fixture
def encode() -> Callable[..., list[Encoded]]:
    """`encode(tokenizer, *canonical rows, kind="conversation", **data)`: encoded as lines of rows.jsonl."""

    def run(tokenizer: Any, *rows: dict[str, Any], kind: str = "conversation", **data: Any) -> list[Encoded]:
        sources = [(SourceRow(Path("rows.jsonl"), line, row), row) for line, row in enumerate(rows, 1)]
        return encoder_of(tokenizer, kind, **data).encode(sources)

    return run


@pytest.fixture
def learned() -> Callable[[Any, Encoded], list[str]]:
    """`learned(tokenizer, encoded)`: the text of each learned run of tokens, over all pieces."""

    def texts(tokenizer: Any, encoded: Encoded) -> list[str]:
        found = []
        for piece in encoded.pieces:
            run: list[int] = []
            for token, mark in [*zip(piece.ids, piece.trained, strict=True), (0, 0)]:
                if mark:
                    run.append(token)
                elif run:
                    found.append(tokenizer.decode(run))
                    run = []
        return found

    return texts


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """`build.byte_level(...)` and so on: tokenizers with the ChatML template, each call a new one."""
    return SimpleNamespace(
        byte_level=build_byte_level,
        metaspace=build_metaspace,
        legacy_llama=build_legacy_llama,
        word_piece=build_word_piece,
        unigram=build_unigram,
        sentences=SENTENCES,
        chatml=CHATML,
    )


def build_byte_level(split: Any = None, **options: Any) -> Any:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    pre = last if split is None else pre_tokenizers.Sequence([split, last])
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    return _wrapped(models.BPE(), trainer, pre, decoder=decoders.ByteLevel(), **options)


def build_metaspace(scheme: str, *, split: bool = True, **options: Any) -> Any:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    pre = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return _wrapped(models.BPE(unk_token="<unk>", fuse_unk=True), trainer, pre, decoder=decoders.Metaspace(), **options)


def build_legacy_llama(**options: Any) -> Any:
    from tokenizers import decoders, models, normalizers, trainers

    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    return _wrapped(models.BPE(unk_token="<unk>"), trainer, None, normalizer, decoder=decoders.Metaspace(), **options)


def build_word_piece(**options: Any) -> Any:
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    model = models.WordPiece(unk_token="[UNK]")
    return _wrapped(model, trainer, pre_tokenizers.BertPreTokenizer(), normalizer, decoder=decoders.WordPiece(), **options)


def build_unigram(**options: Any) -> Any:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    return _wrapped(
        models.Unigram(), trainer, pre_tokenizers.Metaspace(), normalizer, decoder=decoders.Metaspace(), **options
    )


def _wrapped(
    model: Any,
    trainer: Any,
    pre: Any,
    normalizer: Any = None,
    *,
    decoder: Any,
    tokens: tuple[Any, ...] = ("<|im_start|>", "<|im_end|>"),
    template: str = CHATML,
) -> Any:
    """Trained, with a chat template and its special tokens."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(model)
    if pre is not None:
        backend.pre_tokenizer = pre
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoder
    backend.train_from_iterator(SENTENCES * 3, trainer)
    for token in tokens:
        made = token if isinstance(token, AddedToken) else AddedToken(token, special=True, normalized=False)
        backend.add_special_tokens([made]) if made.special else backend.add_tokens([made])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = template
    return tokenizer
