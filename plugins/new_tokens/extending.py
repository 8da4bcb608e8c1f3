"""The tokenizer, extended in place.

Listed tokens become added tokens: found in the raw text, longest first, before anything else of the tokenizer runs.

A whole vocabulary must not be added so: a piece like `er` would be cut out of every word. Its pieces become pieces of the
model's own BPE, with every way to make one of two others as a merge, *after* all merges that the model has:

    old merges:  h e l l o  ->  he ll o         exactly as before
    new merges:  he ll o    ->  hell o -> hello

Old merges never see a new piece, and new ones run only when no old one is left. So the new tokenization of any text is the
old one with some neighbours joined, and a token's old pieces are what the model used to read in its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken
from tokenizers.models import BPE

from luthier.core.contracts import NothingPatched
from luthier.core.errors import ConfigError
from luthier.plugins.new_tokens.sources import convention_of, from_bytes, listed_tokens, read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.plugins.new_tokens import NewTokensConfig


def extend(tokenizer: PreTrainedTokenizerBase, config: NewTokensConfig, notice: Callable[[str], None]) -> None:
    """Everything that the options name, vocabulary first; `notice` hears what was new, known, and left out.

    Raises NothingPatched where nothing was new, ConfigError for a token that would not come back from decoding.
    """
    before = len(tokenizer)
    if config.vocabulary is not None:
        notice(merge_vocabulary(tokenizer, read_vocabulary(config.vocabulary), where=config.vocabulary))
    listed = listed_tokens(config)
    if listed:
        notice(add_listed(tokenizer, listed, special=config.special, whole_word=config.whole_word))
    if len(tokenizer) == before:
        raise NothingPatched("new_tokens: the tokenizer has every one of these tokens already")


def add_listed(tokenizer: PreTrainedTokenizerBase, tokens: list[str], *, special: bool, whole_word: bool) -> str:
    """Add what the vocabulary lacks; returns what to tell the user."""
    new = [token for token in tokens if not is_known(tokenizer, token)]
    # As they stand in the raw text: a normalizer would put a space before them, or fold their letters.
    made = [AddedToken(token, special=special, single_word=whole_word, normalized=False) for token in new]
    tokenizer.add_tokens(made, special_tokens=special)
    for token in new:
        decoded = tokenizer.decode([tokenizer.convert_tokens_to_ids(token)], skip_special_tokens=False)
        if token.strip() not in decoded:
            raise ConfigError(
                f"{token!r} would be decoded as {decoded!r}: the decoder of this tokenizer takes its letters for bytes",
                where="patches: new_tokens",
                fix="begin it with a space, as in a text, or leave it out" if not token.startswith(" ") else "leave it out",
            )
    text = f"new_tokens: {len(new)} of {len(tokens)} tokens added"
    return text + (f", {len(tokens) - len(new)} were in the vocabulary already" if len(new) < len(tokens) else "")


def is_known(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether the tokenizer reads this text as one piece of its vocabulary already."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    return token in tokenizer.get_added_vocab() or (len(ids) == 1 and ids[0] != tokenizer.unk_token_id)


def merge_vocabulary(tokenizer: PreTrainedTokenizerBase, pieces: list[bytes], *, where: str) -> str:
    """Build `pieces` into the tokenizer's BPE; returns what to tell the user. Raises ConfigError where it has none."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    kind = state["model"].get("type", type(tokenizer).__name__)
    convention = convention_of(state) if kind == "BPE" else None
    if convention is None:
        raise ConfigError(
            f"the model's tokenizer ({kind}) is no byte-level or SentencePiece-like BPE: no vocabulary can be built into it",
            where="patches: new_tokens",
            fix="list words under `tokens`",
        )
    # With the added tokens in it: on loading, tokenizers numbers those that the model's vocabulary lacks after its size.
    vocabulary = state["model"]["vocab"] | tokenizer.get_vocab()
    written = [from_bytes(piece, convention) for piece in pieces]
    whole = [piece for piece in written if piece is not None]
    candidates = [piece for piece in whole if piece not in vocabulary]
    model, chosen, between = reach(state["model"], vocabulary, candidates)
    backend.model = model
    counts = {
        "were there already": len(whole) - len(candidates),
        "came with them, to lead from the model's own pieces to these": between,
        "were left out, because the model's alphabet lacks their characters": len(candidates) - chosen,
        "were left out, because they are no whole characters": len(written) - len(whole),
    }
    told = [f"{chosen} of {len(pieces)} pieces of {where} built into the vocabulary"]
    return "new_tokens: " + ", ".join(told + [f"{count} {what}" for what, count in counts.items() if count])


def reach(old: dict[str, Any], vocabulary: dict[str, int], candidates: list[str]) -> tuple[BPE, int, int]:
    """(the BPE with every candidate as what it makes of that one's text, how many there are, how many came with them).

    A piece of which no two parts are pieces is led to by others in between: of those that its text is still cut into, the
    first two joined, round after round. They rank below everything else, so that what was reached stays so.
    """
    chosen, between = list(candidates), dict[str, None]()
    while True:
        model = build(old, vocabulary, [*chosen, *between])
        parts = {piece: [part.value for part in model.tokenize(piece)] for piece in chosen}
        foreign = {piece for piece, found in parts.items() if "".join(found) != piece}
        if foreign:
            chosen = [piece for piece in chosen if piece not in foreign]
            continue
        missing = dict.fromkeys(found[0] + found[1] for found in parts.values() if len(found) > 1)
        if not missing:
            return model, len(chosen), len(between)
        between |= missing


def build(old: dict[str, Any], vocabulary: dict[str, int], new: list[str]) -> BPE:
    """The BPE with `new` after everything it has: ids from the next free one on, merges last, in the order of `new`."""
    first = max(vocabulary.values(), default=-1) + 1
    extended = vocabulary | {piece: first + place for place, piece in enumerate(new)}
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in old["merges"])
    merges: list[tuple[str, str]] = [(left, right) for left, right in pairs]
    merges += [
        (piece[:cut], piece[cut:])
        for piece in new
        for cut in range(1, len(piece))
        if piece[:cut] in extended and piece[cut:] in extended
    ]
    kept = {key: old[key] for key in ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges") if old.get(key)}
    return BPE(vocab=extended, merges=merges, **kept)
