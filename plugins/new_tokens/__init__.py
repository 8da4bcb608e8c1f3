"""`new_tokens`: more tokens in the vocabulary, their rows started from what the model knows already.

    tokens, file   taken out of a text before the model's own tokenizer sees it: control tokens, names, words of a field
    vocabulary     another tokenizer's pieces, built into the model's own BPE: a language that it cuts into small pieces

A new token's row in the embeddings (and in the head, where it has a matrix of its own) is the mean of the rows of the
pieces that the original tokenizer cut it into: the model begins with about what it read there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.context import BuildContext
from luthier.core.contracts import Declaration, Matrix, MemoryTerms, ModelPatch, Support, Undo
from luthier.core.environment import Environment
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.requirements import install_command, missing_packages
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE: Final = "sentencepiece>=0.2"
TRAINED: Final = "embeddings.trained"


@dataclass(frozen=True, kw_only=True)
class NewTokensConfig:
    """Options of `new_tokens`."""

    tokens: tuple[str, ...] = option((), "Tokens to add, as they stand in a text; a leading space counts.")
    file: str | None = option(
        None, "A UTF-8 text file with more of them, one a line; seen from where the command is started."
    )
    vocabulary: str | None = option(
        None,
        "Another tokenizer whose pieces are built in: a folder or file with a tokenizer.json, or a SentencePiece .model.",
    )
    special: bool = option(
        False, "`tokens` and `file` are control tokens: left out of a text that is decoded without special tokens."
    )
    whole_word: bool = option(False, "`tokens` and `file` are found only where no letter or digit stands beside them.")
    init: Literal["pieces", "random"] = option(
        "pieces",
        "First value of a new row: the mean of the rows of its old `pieces`, or `random` numbers with the mean and "
        "deviation of each column.",
    )
    pad_to_multiple_of: int | None = option(
        None, "Rows of the embeddings are filled up to a multiple of this, 64 or 128 for the speed of the head.", ge=1
    )

    def __post_init__(self) -> None:
        if not (self.tokens or self.file or self.vocabulary):
            raise ValueError("names no token: give tokens, file or vocabulary")
        if any(not token for token in self.tokens):
            raise ValueError("tokens: an empty text is no token")
        if len(set(self.tokens)) < len(self.tokens):
            twice = next(token for token in self.tokens if self.tokens.count(token) > 1)
            raise ValueError(f"tokens: {twice!r} is named twice")
        if (self.special or self.whole_word) and not (self.tokens or self.file):
            raise ValueError("special and whole_word are about tokens and file; the pieces of a vocabulary are plain ones")


def supports(profile: ArchitectureProfile, environment: Environment, config: NewTokensConfig) -> Support:
    from luthier.plugins.new_tokens.sources import needs_sentencepiece

    if len(profile.modules("embed")) != 1:
        return Support.no(f"{profile.model_type} has no single matrix of token embeddings")
    for key, path in (("file", config.file), ("vocabulary", config.vocabulary)):
        if path is not None and not Path(path).expanduser().exists():
            return Support.no(f"{key}: there is no {path}", "give the path as seen from where the command is started")
    if config.vocabulary is not None and needs_sentencepiece(config.vocabulary):
        missing = missing_packages((SENTENCEPIECE,), environment.packages)
        if missing:
            return Support.missing(f"{config.vocabulary} is read with the package sentencepiece", install_command(missing))
    return Support.yes()


def declares(profile: ArchitectureProfile, config: NewTokensConfig) -> Declaration:
    """Why rows that nothing trains are refused, in words that name the ways to train them."""
    why = (
        "a new row has to be learned; `adapter: {use: lora, new_tokens: true}` trains the new rows alone, "
        "`{use: freeze, embeddings: true, extra: [head]}` and `full` train all rows"
    )
    return Declaration(reasons=FrozenDict({TRAINED: why}))


def memory(profile: ArchitectureProfile, config: NewTokensConfig) -> MemoryTerms:
    """At most one row for each token that is named, in the embeddings and in a head of its own; all of them train."""
    from luthier.plugins.new_tokens.sources import count_named

    rows = count_named(config)
    roles = ("embed",) if profile.tied_embeddings or not profile.has("head") else ("embed", "head")
    matrices = tuple(Matrix(role=role, shape=(rows, width)) for role in roles if (width := _width(profile, role)) and rows)
    added = sum(matrix.size for matrix in matrices)
    return MemoryTerms(trainable=added, added=added, matrices=matrices)


def _width(profile: ArchitectureProfile, role: str) -> int:
    return next((group.shape[1] for group in profile.groups(role) if len(group.shape) == 2), 0)


def edit_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    profile: ArchitectureProfile,
    config: NewTokensConfig,
    notice: Callable[[str], None] = lambda text: None,
) -> None:
    """Adds the tokens in place; raises NothingPatched when the tokenizer has every one of them already."""
    from luthier.plugins.new_tokens.extending import extend

    extend(tokenizer, config, notice)


def apply(
    model: nn.Module | None, profile: ArchitectureProfile, config: NewTokensConfig, context: BuildContext | None = None
) -> Undo:
    """Rows for what `edit_tokenizer` added: the difference between the run's tokenizer and the original one."""
    from luthier.plugins.new_tokens.rows import add_rows

    assert model is not None
    assert context is not None
    return add_rows(model, config, context)


@hookimpl
def luthier_model_patches() -> Iterable[ModelPatch[NewTokensConfig]]:
    yield ModelPatch(
        name="new_tokens",
        summary="New tokens, or another vocabulary's, with rows started from the mean of their old pieces.",
        config=NewTokensConfig,
        provides=frozenset({"vocabulary.extended", "base.changed"}),
        requires=(any_of(TRAINED),),
        declares=declares,
        numerics="changes",
        supports=supports,
        memory=memory,
        edit_tokenizer=edit_tokenizer,
        apply=apply,
        phase="loaded",
        persistent=True,
        example={"tokens": ["<|note|>", "<|/note|>"], "special": True},
        reference="Hewitt 2021, Initializing New Word Embeddings for Pretrained Language Models",
    )
