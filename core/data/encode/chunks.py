r"""A fast tokenizer's own ids, several times as fast, for byte-level BPE: text is cut where it is certain to be split.

    text -> split at added tokens -> cut before blanks: "The| capital| of| France.| It" -> ids of each chunk, remembered

Most of a backend's time goes into splitting and merging words that it has split and merged before. A chunk's ids are what
the backend gives for the chunk alone, and joined they are the ids of the whole wherever the pre-tokenizer is certain to
split at the cut, between a printable ASCII character and a blank. That is so when none of its patterns can match a
character that is not white space with a blank after it, none looks back, and one of them takes every blank that no other
took (`\s+`): the match to the left ends at the cut with or without the rest, and the next one begins there. `SAFE` has the
alternatives that are of this kind; a tokenizer that splits by anything else is not taken (`ChunkEncoder.of` gives None).
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

# What ByteLevel splits by (`use_regex`): https://github.com/openai/gpt-2/blob/master/src/encoder.py
GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Alternatives that match no blank after a character that is not white space, and look ahead from white space at most: of
# GPT-2, cl100k (Llama 3, Qwen), o200k, Tekken, DeepSeek.
SAFE: Final = frozenset(
    {
        *GPT2.split("|"),
        _SHORT,
        "'(?i:[sdmt]|ll|ve|re)",
        r"\p{L}+",
        r"\p{N}",
        r"\p{N}+",
        r"\p{N}{1,3}",
        r"\d",
        r"\d{1,3}",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        *(
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{one}{_LOWER}{two}" + end
            for one, two in ("*+", "+*")
            for end in ("", _SHORT + "?")
        ),
        "[一-龥\u3040-ゟ゠-ヿ]+",
        "[一-龥\u0800-\u4e00가-\ud7ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        r"[\r\n]",
        r"[\r\n]+",
    }
)
TAKES_BLANKS: Final = r"\s+"
LOCAL_NORMALIZERS: Final = frozenset({"NFC", "NFD", "NFKC", "NFKD"})  # none changes anything across "x| y"
# Blanks and what follows up to the next blank; further while the character before that blank is no printable ASCII.
_CHUNKS: Final = re.compile(r" *[^ ]+(?:(?<![!-~]) +[^ ]*)*| +").findall
ID_TYPE: Final = "i"
ID_BYTES: Final = array(ID_TYPE).itemsize
MOST_CHUNKS: Final = 200_000
LONGEST_CHUNK: Final = 48


class ChunkEncoder:
    """`encode(text)` gives the ids that `backend.encode(text, add_special_tokens=False)` has, and where added tokens are."""

    def __init__(self, backend: Any, added: list[Mapping[str, int]]) -> None:
        self._chunks = _Chunks(backend)
        self._added = {text: array(ID_TYPE, [number]).tobytes() for one in added for text, number in one.items()}
        self._separators = [alternatives(one) for one in added if one]

    @classmethod
    def of(cls, backend: Any) -> ChunkEncoder | None:
        """For a `tokenizers.Tokenizer`; None where a part of it is unknown here or does more than the text above says."""
        plan = json.loads(backend.to_str())
        tokens = plan["added_tokens"]
        late = [token["content"] for token in tokens if token["normalized"]]
        if not _is_plain_bpe(plan["model"]) or not _is_local(plan["normalizer"]) or (late and plan["normalizer"]):
            return None
        if any(token["single_word"] or token["lstrip"] or token["rstrip"] or not token["content"] for token in tokens):
            return None
        if not _splits_at_cuts(plan["pre_tokenizer"]):
            return None
        # The backend looks for those that are not normalised first, in the whole text, then for the others in what is left.
        groups = ([token for token in tokens if token["normalized"] is flag] for flag in (False, True))
        return cls(backend, [{token["content"]: token["id"] for token in group} for group in groups])

    def encode(self, text: str) -> tuple[array[int], list[int], list[int], list[int]]:
        """Token ids; and of each added token in the text: its first character, the one after it, its place in the ids."""
        joined: list[bytes] = []
        begins: list[int] = []
        ends: list[int] = []
        places: list[int] = []
        at = size = 0
        lookup, added = self._chunks.__getitem__, self._added
        for part in self._parts(text):
            ids = added.get(part)
            end = at + len(part)
            if ids is None:
                ids = b"".join(map(lookup, _CHUNKS(part)))
            else:
                begins.append(at)
                ends.append(end)
                places.append(size // ID_BYTES)
            joined.append(ids)
            size += len(ids)
            at = end
        return array(ID_TYPE, b"".join(joined)), begins, ends, places

    def _parts(self, text: str) -> Iterable[str]:
        parts: Iterable[str] = (text,)
        for number, separator in enumerate(self._separators):
            # What was found stays whole in the next round: an added token is cut by no other one.
            parts = [
                found
                for part in parts
                for found in ((part,) if number and part in self._added else separator.split(part))
                if found
            ]
        return parts


class _Chunks(dict[str, bytes]):
    """Ids by chunk; asks the backend for those it has not met. Long ones are not kept: they hardly come again."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self._backend = backend

    def __missing__(self, chunk: str) -> bytes:
        ids = array(ID_TYPE, self._backend.encode(chunk, add_special_tokens=False).ids).tobytes()
        if len(chunk) <= LONGEST_CHUNK:
            if len(self) >= MOST_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids


def alternatives(texts: Iterable[str]) -> re.Pattern[str]:
    """One group that finds the leftmost of some texts, and of those beginning there the longest."""
    return re.compile(f"({_tree(sorted(set(texts)))})")


def _tree(texts: list[str]) -> str:
    """Common beginnings are written once: hundreds of `<|reserved_special_token_7|>` are then found as fast as one."""
    branches: list[str] = []
    rest = [text for text in texts if text]
    while rest:
        same = [text for text in rest if text[0] == rest[0][0]]
        rest = rest[len(same) :]
        common = _common(same)
        branches.append(re.escape(common) + _tree([text[len(common) :] for text in same]))
    if not branches:
        return ""
    together = branches[0] if len(branches) == 1 else "|".join(branches)
    optional = "?" if "" in texts else ""  # greedy: the longest is tried first
    return f"(?:{together}){optional}" if optional or len(branches) > 1 else together


def _common(texts: list[str]) -> str:
    """The longest common beginning; sorted texts differ first between the first and the last."""
    pairs = zip(texts[0], texts[-1], strict=False)
    return texts[0][: sum(accumulate((a == b for a, b in pairs), lambda so_far, same: so_far and same))]


def _is_plain_bpe(model: Mapping[str, Any]) -> bool:
    changed = (model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    return model.get("type") == "BPE" and not any(changed)


def _is_local(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(_is_local(part) for part in normalizer["normalizers"])
    return normalizer["type"] in LOCAL_NORMALIZERS


def _splits_at_cuts(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    parts = list(_flat(pre_tokenizer))
    if not parts or parts[-1]["type"] != "ByteLevel":
        return False
    patterns = [_alternatives_of(part) for part in parts]
    return all(one is not None and SAFE.issuperset(one) for one in patterns) and any(
        TAKES_BLANKS in one for one in patterns if one is not None
    )


def _flat(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if part is not None and part["type"] == "Sequence":
        for inner in part["pretokenizers"]:
            yield from _flat(inner)
    elif part is not None:
        yield part


def _alternatives_of(part: Mapping[str, Any]) -> list[str] | None:
    """The alternatives of a pre-tokenizer that does nothing but split by a pattern; None for any other."""
    kind = part["type"]
    if kind == "Digits":
        return [r"\p{N}" if part["individual_digits"] else r"\p{N}+"]
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return GPT2.split("|") if part.get("use_regex", True) else []
    # Where the gaps between the matches are removed, the matches are the same.
    isolates = (part.get("behavior"), part.get("invert")) in (("Isolated", False), ("Removed", True))
    if kind == "Split" and isolates and "Regex" in part["pattern"]:
        return top_level(part["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n"))
    return None


def top_level(pattern: str) -> list[str]:
    """The alternatives of a regular expression: split at every `|` that stands in no group and no class."""
    found, depth, in_class, begin = [], 0, False, 0
    skip = False
    for at, letter in enumerate(pattern):
        if skip or letter == "\\":
            skip = not skip
        elif in_class:
            in_class = letter != "]"
        elif letter == "[":
            in_class = True
        elif letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "|" and not depth:
            found.append(pattern[begin:at])
            begin = at + 1
    return [*found, pattern[begin:]]
