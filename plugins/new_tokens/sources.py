"""Where new tokens come from: a list, a text file, another tokenizer; a foreign piece as the bytes that it stands for.

Tokenizers write the same piece in their own ways: " the" is `▁the` in SentencePiece, `Ġthe` in byte-level BPE, and the
latter's pieces need not be whole characters. So what is carried over are bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.errors import DataError, MissingEnvironmentError

if TYPE_CHECKING:
    from luthier.plugins.new_tokens import NewTokensConfig

Convention = Literal["bytes", "metaspace"]
SPACE: Final = "▁"
BYTE_PIECE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
TOKENIZER_JSON: Final = "tokenizer.json"
TOKENIZER_MODEL: Final = "tokenizer.model"


def listed_tokens(config: NewTokensConfig) -> list[str]:
    """`tokens` and the lines of `file`, each once, in order. Raises DataError for a file that is not UTF-8 text."""
    found = dict.fromkeys(config.tokens)
    if config.file is not None:
        path = Path(config.file).expanduser()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the tokens cannot be read: {error}", where=str(path), fix="give a UTF-8 text file") from error
        # Not splitlines(): it would cut at characters that a token may well hold.
        lines = (line.removesuffix("\r") for line in text.split("\n"))
        found |= dict.fromkeys(line for line in lines if line)
    return list(found)


def count_named(config: NewTokensConfig) -> int:
    """How many tokens the options name, those included that the model has already; what cannot be read counts nothing."""
    try:
        listed = len(listed_tokens(config))
        return listed + (len(read_vocabulary(config.vocabulary)) if config.vocabulary is not None else 0)
    except (DataError, MissingEnvironmentError):
        return len(config.tokens)


def vocabulary_file(path: str) -> Path:
    """The file to read: `path` itself, or in a folder its tokenizer.json, else its tokenizer.model."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return place
    return place / (TOKENIZER_JSON if (place / TOKENIZER_JSON).is_file() else TOKENIZER_MODEL)


def needs_sentencepiece(path: str) -> bool:
    return vocabulary_file(path).suffix != ".json"


def read_vocabulary(path: str) -> list[bytes]:
    """The pieces of another tokenizer in the order of their ids, as bytes: no special, control, unknown or byte pieces.

    Raises DataError, naming the file, for what is no BPE, Unigram or SentencePiece vocabulary.
    """
    file = vocabulary_file(path)
    try:
        stamp = file.stat()
    except OSError as error:
        raise DataError(f"the vocabulary cannot be read: {error.strerror}", where=str(file)) from error
    return list(_read(file, stamp.st_mtime_ns, stamp.st_size))


@lru_cache(maxsize=2)
def _read(file: Path, modified: int, size: int) -> tuple[bytes, ...]:
    """A plan asks for the number and a run for the pieces: read once as long as the file is the same."""
    pieces = _read_json(file) if file.suffix == ".json" else _read_sentencepiece(file)
    return tuple(dict.fromkeys(piece for piece in pieces if piece))


def _read_sentencepiece(file: Path) -> Iterator[bytes]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        fix = "pip install sentencepiece, or give a folder with a tokenizer.json"
        raise MissingEnvironmentError(f"{file.name} is read with sentencepiece", where=str(file), fix=fix) from error
    try:
        processor: Any = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise DataError("this is no SentencePiece model", where=str(file), fix="give its tokenizer.json") from error
    for index in range(processor.get_piece_size()):
        ignored = (processor.is_control, processor.is_unknown, processor.is_byte, processor.is_unused)
        if not any(kind(index) for kind in ignored):
            yield processor.id_to_piece(index).replace(SPACE, " ").encode()


def _read_json(file: Path) -> Iterator[bytes]:
    try:
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
        model = tokenizer["model"]
        kind, vocabulary = model.get("type"), model["vocab"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"this is no tokenizer.json: {error!r}", where=str(file)) from error
    convention = convention_of(tokenizer)
    if kind not in ("BPE", "Unigram") or convention is None:
        raise DataError(
            f"a {kind} vocabulary that marks neither spaces (▁) nor bytes (Ġ) cannot be carried over",
            where=str(file),
            fix="give a BPE, Unigram or SentencePiece vocabulary, or list words under `tokens`",
        )
    special = {token["content"] for token in tokenizer.get("added_tokens") or ()}
    ordered = sorted(vocabulary, key=vocabulary.__getitem__) if kind == "BPE" else [piece for piece, _ in vocabulary]
    for piece in ordered:
        if piece not in special and (convention == "bytes" or not BYTE_PIECE.fullmatch(piece)):
            yield to_bytes(piece, convention)


# ---- how tokenizers write a piece


def convention_of(tokenizer: Mapping[str, Any]) -> Convention | None:
    """How a tokenizer.json writes pieces: each byte as a character, or spaces as ▁; None where it is neither."""
    model = tokenizer["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    parts = json.dumps([tokenizer.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    if '"ByteLevel"' in parts:
        return "bytes"
    return "metaspace" if SPACE in parts else None


def to_bytes(piece: str, convention: Convention) -> bytes:
    """What a piece stands for. A byte-level piece with a character that stands for no byte is taken as text."""
    if convention == "metaspace":
        return piece.replace(SPACE, " ").encode()
    known = bytes_by_character()
    if any(character not in known for character in piece):
        return piece.encode()
    return bytes(known[character] for character in piece)


def from_bytes(piece: bytes, convention: Convention) -> str | None:
    """The piece as a tokenizer of this convention writes it; None where that takes whole characters and these are none."""
    if convention == "bytes":
        characters = {byte: character for character, byte in bytes_by_character().items()}
        return "".join(characters[byte] for byte in piece)
    try:
        return piece.decode().replace(" ", SPACE)
    except UnicodeDecodeError:
        return None


@cache
def bytes_by_character() -> dict[str, int]:
    """GPT-2's alphabet: a byte that prints in Latin-1 stands for itself, the others are numbered from U+0100 on."""
    printing = [byte for byte in range(256) if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
