"""Canonical rows to token ids and labels.

make_encoder     the encoder of one kind of data             result.py: what it gives
chat.py          conversations, preferences, rated answers, prompts          text.py: documents
dialogue.py      a row as the template gets it               template.py: written by the chat template, many at once
features.py      what a template leaves out without a word   labels.py: which tokens are learned
lengths.py       rows that are too long                      check.py: the first rows once more, as inference does it
tokens.py        texts to ids, and the boundary of a prompt  chunks.py: the same ids, faster
fingerprint.py   what decides the result
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from luthier.core.config.schema import AUTO, DataConfig
from luthier.core.contracts import DataKind
from luthier.core.data.encode.chat import ConversationEncoder, PreferenceEncoder, PromptEncoder, UnpairedEncoder
from luthier.core.data.encode.result import Encoded, Encoder, Piece
from luthier.core.data.encode.text import TextEncoder
from luthier.core.errors import DataError

__all__ = ["Encoded", "Encoder", "Piece", "make_encoder"]

ENCODERS: Final[dict[DataKind, Callable[[Any, DataConfig], Encoder]]] = {
    "conversation": ConversationEncoder,
    "text": TextEncoder,
    "preference": PreferenceEncoder,
    "unpaired": UnpairedEncoder,
    "prompt": PromptEncoder,
}

LEARNED: Final[dict[DataKind, str]] = {
    "text": "every token is learned",
    "preference": "the answers are learned",
    "unpaired": "the answers are learned",
    "prompt": "nothing is learned from prompts themselves",
}


def make_encoder(tokenizer: Any, data: DataConfig, kind: DataKind) -> Encoder:
    """The encoder of rows of `kind`, for a transformers tokenizer that already has the chat template to use.

    Raises DataError when it has none and the kind needs one, for a `data.too_long` that the kind cannot have, and
    for keys of `data:` that would have no effect on it.
    """
    _refuse_what_has_no_effect(data, kind)
    return ENCODERS[kind](tokenizer, data)


def _refuse_what_has_no_effect(data: DataConfig, kind: DataKind) -> None:
    """Keys of `data:` that say something about another kind of rows: what was asked for would not happen."""
    no_effect: dict[str, str] = {}
    if kind != "conversation" and data.train_on not in ("completion", *(("all",) if kind == "text" else ())):
        no_effect["train_on"] = LEARNED[kind]
    if kind == "text":
        given = {
            "template": data.template != AUTO,
            "template_options": data.template_options,
            "system": data.system is not None,
        }
        no_effect |= {key: "no chat template writes it" for key, is_given in given.items() if is_given}
    for key, why in no_effect.items():
        raise DataError(f"has no effect on {kind} data: {why}", where=f"data.{key}", fix="take it out")
