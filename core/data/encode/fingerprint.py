"""Everything besides the rows that decides token ids and labels, as one hexadecimal number: a part of the cache's key."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from luthier.core.config.schema import DataConfig
from luthier.core.contracts import DataKind
from luthier.core.frozen import canonical_json

if TYPE_CHECKING:
    from luthier.core.data.encode.template import Template

# Raised whenever the same rows, tokenizer and options come to give other tokens or labels.
VERSION: Final = 2
_DATE: Final = "strftime_now"


def fingerprint(tokenizer: Any, kind: DataKind, data: DataConfig, template: Template | None = None) -> str:
    """Hexadecimal SHA-256. A template that writes today's date counts with it."""
    parts: dict[str, Any] = {
        "version": VERSION,
        "kind": kind,
        "max_length": data.max_length,
        "too_long": data.too_long,
        "tokenizer": _tokenizer(tokenizer),
    }
    if template is not None:
        parts |= {
            "train_on": data.train_on,
            "system": data.system,
            "template": template.texts,
            "template_options": data.template_options,
            "today": _today() if any(_DATE in text for text in template.texts) else None,
        }
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _today() -> str:
    from datetime import datetime

    return datetime.now().astimezone().date().isoformat()


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    found = {
        "class": type(tokenizer).__name__,
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        return found | {"backend": hashlib.sha256(backend.to_str().encode()).hexdigest()}
    options = {key: str(value) for key, value in getattr(tokenizer, "init_kwargs", {}).items()}
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    return found | {
        "vocabulary": tokenizer.get_vocab(),
        "added": {str(key): added[key] for key in sorted(added)},
        "options": options,
    }
