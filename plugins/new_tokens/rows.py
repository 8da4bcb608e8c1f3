"""Rows of the embeddings and of the head for new tokens: matrices grown where they are too small, and first values.

    row of a new token = mean of the rows of its old pieces, in the embeddings as in a head of its own

Rows beyond the last token (`pad_to_multiple_of`) get the mean of all old rows: no text leads there, and the head gives them
no more than an average logit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.core.contracts import NothingPatched, Undo
from luthier.core.saving import quiet

if TYPE_CHECKING:
    from luthier.core.context import BuildContext
    from luthier.plugins.new_tokens import NewTokensConfig

ROWS_AT_ONCE = 4096
ABSENT = object()


def add_rows(model: nn.Module, config: NewTokensConfig, context: BuildContext) -> Undo:
    """Grow and fill what `context.tokenizer` has beyond `context.original_tokenizer`; the callable returned takes it back.

    Raises NothingPatched where there is nothing new, or no plain matrix to grow.
    """
    tokenizer, original = context.tokenizer, context.original_tokenizer
    assert tokenizer is not None
    assert original is not None
    new = sorted(set(tokenizer.get_vocab().values()) - set(original.get_vocab().values()))
    if not new:
        raise NothingPatched("new_tokens: the run's tokenizer has no token that the original one lacks")
    matrices = row_matrices(model)
    rows = matrices[0].weight.shape[0]
    wanted = max(rows, new[-1] + 1)
    wanted += -wanted % (config.pad_to_multiple_of or 1)
    undo = grow(model, matrices, rows, wanted, new)
    old = min(len(original), rows)
    pieces = old_pieces(tokenizer, original, new)
    for matrix in distinct(matrices):
        for values in parameters_by_row(matrix):
            fill(values, new, pieces, old, init=config.init)
            values[max(rows, new[-1] + 1) :] = average(values, old).to(values.dtype)
    told = [f"new_tokens: {len(new)} new rows"]
    without = sum(not ids for ids in pieces)
    if without and config.init == "pieces":
        told.append(f"{without} of them start from the mean of all rows, having no old pieces")
    if wanted > rows:
        told.append(
            f"{rows} rows became {wanted}: an adapter's base model needs resize_token_embeddings({wanted}) to fit it"
        )
    context.notice(", ".join(told))
    return undo


def row_matrices(model: Any) -> list[Any]:
    """The modules with one row for each token: embeddings, and the head where the model has one."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        raise NothingPatched(f"new_tokens: the embeddings are a {type(embeddings).__name__}, no plain matrix")
    if head is not None and not isinstance(head, nn.Linear | nn.Embedding):
        raise NothingPatched(f"new_tokens: the output head is a {type(head).__name__}, no plain matrix")
    return [embeddings] if head is None else [embeddings, head]


def distinct(matrices: Sequence[Any]) -> list[Any]:
    """Those that share their matrix with none before them; a tied head with a bias stays, for the bias."""
    seen: set[int] = set()
    kept = []
    for matrix in matrices:
        if matrix.weight.data_ptr() not in seen or getattr(matrix, "bias", None) is not None:
            kept.append(matrix)
        seen.add(matrix.weight.data_ptr())
    return kept


def parameters_by_row(matrix: Any) -> Iterator[Tensor]:
    """Its weight (rows, d) and, as (rows, 1), its bias: views, to be written into."""
    for parameter in parameters_of(matrix):
        yield parameter.data if parameter.ndim == 2 else parameter.data[:, None]


def grow(model: Any, matrices: Sequence[Any], rows: int, wanted: int, new: Sequence[int]) -> Undo:
    """transformers' resize, in the same modules and Parameters; the undo cuts the rows off again.

    Spare rows that the model came with are written over too, and put back.
    """
    text: Any = model.config.get_text_config()
    sizes = [(text, vars(text).get("vocab_size", ABSENT)), (model, vars(model).get("vocab_size", ABSENT))]
    spare = [row for row in new if row < rows]
    saved = [values[spare].clone() for matrix in distinct(matrices) for values in parameters_by_row(matrix)]
    if wanted > rows:
        with quiet():
            model.resize_token_embeddings(wanted, mean_resizing=False)
        keep_head(model, matrices[-1])

    def undo() -> None:
        for matrix in matrices:
            set_rows(matrix, [parameter.data[:rows].clone() for parameter in parameters_of(matrix)])
        current = [values for matrix in distinct(matrices) for values in parameters_by_row(matrix)]
        for values, old in zip(current, saved, strict=True):
            values[spare] = old
        for owner, size in sizes:
            if size is ABSENT:
                vars(owner).pop("vocab_size", None)
            else:
                owner.vocab_size = size

    return undo


def keep_head(model: Any, head: Any) -> None:
    """Put a new head's numbers into the one the model had: transformers keeps that of embeddings, not the head's."""
    made = model.get_output_embeddings()
    if made is None or made is head:
        return
    set_rows(head, [parameter.data for parameter in parameters_of(made)])
    model.set_output_embeddings(head)


def parameters_of(matrix: Any) -> list[nn.Parameter]:
    """Weight and bias, where there is one."""
    return [matrix.weight] if getattr(matrix, "bias", None) is None else [matrix.weight, matrix.bias]


def set_rows(matrix: Any, values: Sequence[Tensor]) -> None:
    """New numbers for weight and bias in the same Parameters, so that what shares them follows."""
    for parameter, value in zip(parameters_of(matrix), values, strict=True):
        parameter.data = value
        parameter.grad = None
    setattr(matrix, "num_embeddings" if isinstance(matrix, nn.Embedding) else "out_features", len(values[0]))


# ---- first values


def old_pieces(tokenizer: Any, original: Any, new: Sequence[int]) -> list[list[int]]:
    """For each new id the ids that the original tokenizer reads in its place; none where it only finds the unknown."""
    added = tokenizer.get_added_vocab().values()
    listed = set(added)
    model: Any = original.backend_tokenizer.model if getattr(original, "is_fast", False) else None
    found = []
    for index, token in zip(new, tokenizer.convert_ids_to_tokens(list(new)), strict=True):
        if index in listed or model is None:
            ids = original(token, add_special_tokens=False)["input_ids"]
        else:  # a piece as the tokenizer's own model writes it: no text that could be read
            ids = [piece.id for piece in model.tokenize(token)]
        found.append([one for one in ids if one != original.unk_token_id])
    return found


def fill(values: Tensor, new: Sequence[int], pieces: Sequence[Sequence[int]], old: int, *, init: str) -> None:
    """Write the first values of the rows `new` of a matrix (rows, d) whose first `old` rows are the model's own."""
    mean = average(values, old)
    if init == "random":
        # A generator of its own: the same rows whenever a run is resumed or merged.
        deviation = spread(values, old, mean)
        noise = torch.randn(len(new), values.shape[1], generator=torch.Generator().manual_seed(0))
        values[list(new)] = (mean + noise.to(values.device) * deviation).to(values.dtype)
        return
    for start in range(0, len(new), ROWS_AT_ONCE):
        chunk = pieces[start : start + ROWS_AT_ONCE]
        owners = torch.tensor([row for row, ids in enumerate(chunk) for _ in ids], dtype=torch.long, device=values.device)
        flat = torch.tensor([one for ids in chunk for one in ids], dtype=torch.long, device=values.device)
        sums = torch.zeros(len(chunk), values.shape[1], device=values.device).index_add_(0, owners, values[flat].float())
        counts = torch.tensor([len(ids) for ids in chunk], device=values.device)[:, None]
        rows = torch.where(counts > 0, sums / counts.clamp(min=1), mean)
        values[list(new[start : start + ROWS_AT_ONCE])] = rows.to(values.dtype)


def average(values: Tensor, old: int) -> Tensor:
    """The mean of the first `old` rows, (d,) in float32."""
    return values[:old].mean(dim=0, dtype=torch.float32)


def spread(values: Tensor, old: int, mean: Tensor) -> Tensor:
    """The standard deviation of each column over the first `old` rows, (d,) in float32, without a float32 copy of them."""
    squares = torch.zeros_like(mean)
    for part in values[:old].split(ROWS_AT_ONCE):
        squares += (part.float() - mean).square().sum(dim=0)
    return (squares / old).sqrt()
