"""A text in one language and in another, as the translation data sets of the hub have them.

    {"translation": {"en": "a volcanic rock", "de": "ein Vulkangestein"}}
    format: {use: translation, source: en, target: de}

Without options the first two languages of each row are taken, in the row's order.
As in https://huggingface.co/datasets/wmt/wmt16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from luthier.core.extensions import Row, RowError
from luthier.core.options import option
from luthier.core.rows import answer_text, assistant, filled_text, joined, require, shown_type, user

LANGUAGES: Final = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "et": "Estonian", "fi": "Finnish",
    "fr": "French", "gu": "Gujarati", "hi": "Hindi", "it": "Italian", "ja": "Japanese", "kk": "Kazakh", "ko": "Korean",
    "lt": "Lithuanian", "lv": "Latvian", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TranslationConfig:
    """The direction, and what is asked of the model."""

    source: str | None = option(None, "Language code of the text that is given; unset takes the row's first.")
    target: str | None = option(None, "Language code of the text to learn; unset takes the row's second.")
    instruction: str = option(
        "Translate from {source} to {target}.",
        "The request put before the text, {source} and {target} being the languages' names; empty puts none.",
    )

    def __post_init__(self) -> None:
        if (self.source is None) != (self.target is None) or (self.source is not None and self.source == self.target):
            raise ValueError("source and target are two languages, and given together")


def detect(row: Row) -> bool:
    return isinstance(row.get("translation"), Mapping)


def convert(row: Row, options: TranslationConfig) -> Row:
    """The canonical conversation; raises RowError when a language is missing or its text is empty."""
    texts = require(row, "translation")
    if not isinstance(texts, Mapping):
        raise RowError(f"must be an object of language code and text, not {shown_type(texts)}", column="translation")
    if options.source is None or options.target is None:
        if len(texts) < 2:
            raise RowError(f"needs two languages, and has: {', '.join(texts) or 'none'}", column="translation")
        source, target = list(texts)[:2]
    else:
        source, target = options.source, options.target
    flat = {f"translation.{code}": text for code, text in texts.items()}
    request = options.instruction.replace("{source}", name(source)).replace("{target}", name(target))
    question = joined(request, filled_text(flat, f"translation.{source}"))
    return {"messages": [user(question), assistant(answer_text(flat, f"translation.{target}"))]}


def name(code: str) -> str:
    """A language's English name, where it is known, else its code."""
    return LANGUAGES.get(code, code)
