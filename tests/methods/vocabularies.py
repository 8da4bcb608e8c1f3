"""Tokenizers with new tokens in them, and texts to train vocabularies on, for the tests of `new_tokens`."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from luthier.plugins import new_tokens
from luthier.plugins.new_tokens import NewTokensConfig

WORDS = (
    "Die Gesellschaft der Wissenschaften in Göttingen und die Grüße aus Köln: Wissenschaft schafft Wissen, größer als "
    "gesellschaftliche Freundschaft, 日本語のテキスト, naïve café."
)
LINES = [" ".join(random.Random(seed).choices(WORDS.split(" "), k=9)) for seed in range(300)]


def extended(tokenizer: Any, **options: Any) -> tuple[Any, str]:
    """A copy with the tokens in it, and what was said."""
    made = copy.deepcopy(tokenizer)
    said: list[str] = []
    new_tokens.edit_tokenizer(made, None, NewTokensConfig(**options), notice=said.append)  # type: ignore[arg-type]
    return made, " ".join(said)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def write_corpus(folder: Path) -> Path:
    """The lines as a file."""
    path = folder / "lines.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def sentencepiece_model(corpus: Path, kind: str) -> Path:
    """A SentencePiece model ("bpe" or "unigram") of the lines, beside them."""
    spm = pytest.importorskip("sentencepiece")
    prefix = corpus.with_name(kind)
    if not prefix.with_suffix(".model").exists():
        spm.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(prefix), vocab_size=170, model_type=kind, character_coverage=1.0,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return prefix.with_suffix(".model")
