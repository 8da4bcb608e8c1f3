"""The rows that a model is evaluated on, tokenised as for its training, each with the place that it is from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from luthier.core.config.schema import Choice, DataConfig, ModelConfig, RunConfig, SourceConfig
from luthier.core.contracts import DataKind
from luthier.core.data import Examples, prepare
from luthier.core.data.formats import Formats, LeftOut, OpenSource, open_source
from luthier.core.data.holdout import content_key
from luthier.core.data.report import DataReport
from luthier.core.errors import DataError

# Kinds of rows that can be evaluated, and as what.
TAKEN_AS: Final[dict[DataKind, DataKind]] = {
    "text": "text",
    "conversation": "conversation",
    "preference": "preference",
    "unpaired": "conversation",
}


@dataclass(frozen=True, eq=False)
class Rows:
    """`places` say where each row is from (`data/held-out.jsonl:12`); `report` what became of all rows."""

    kind: DataKind
    examples: Examples
    places: tuple[str, ...]
    report: DataReport

    def where(self, kept: Any) -> Rows:
        """The rows whose entry in `kept`, bool (rows,), is true."""
        places = tuple(place for place, keep in zip(self.places, kept.tolist(), strict=True) if keep)
        return dataclasses.replace(self, examples=self.examples.where(kept), places=places)


def read_rows(
    paths: Sequence[str],
    data: DataConfig,
    tokenizer: Any,
    formats: Formats,
    *,
    format_name: str,
    max_rows: int | None,
    notice: Callable[[str], None],
) -> Rows:
    """The rows of some files, all of one kind, at most the first `max_rows`; read with the options of `data`.

    Raises DataError for what cannot be read or evaluated.
    """
    sources = tuple(SourceConfig(path=path, format=Choice(use=format_name), rows=max_rows) for path in paths)
    opened = [open_source(source, formats, drop_bad=data.bad_rows == "drop") for source in sources]
    kind = _kind(opened)
    if any(one.kind == "unpaired" for one in opened):
        notice("rows that are labelled good or bad are evaluated as conversations: the good ones")
    sources = tuple(dataclasses.replace(source, kind=kind) for source in sources)
    if kind == "conversation" and data.train_on == "all":
        notice("the run learned every token (data.train_on: all); here only the assistant's turns count")
        data = dataclasses.replace(data, train_on="completion")
    if kind != "text" and data.too_long == "split":
        notice("only texts are split where they are too long (data.too_long: split); longer rows are left out here")
        data = dataclasses.replace(data, too_long="drop")
    plain = {"train": sources, "eval": 0.0, "mix": "concatenate", "packing": False, "streaming": False, "dataset_info": None}
    config = RunConfig(model=ModelConfig(name=""), data=dataclasses.replace(data, **plain))  # type: ignore[arg-type]
    prepared = prepare(config, formats, tokenizer, kind=kind, notice=notice)
    rows = Rows(kind, prepared.train, _places(prepared.train, sources, data, formats), prepared.report)
    if max_rows is not None and rows.examples.rows > max_rows:
        rows = rows.where(np.arange(rows.examples.rows) < max_rows)
    return rows


def in_both(one: Rows, other: Rows) -> tuple[Rows, Rows, int]:
    """Of two readings of the same files, the rows that both kept, and how many of `one` that leaves out."""
    keys = np.intersect1d(one.examples.keys, other.examples.keys)
    masks = [np.isin(rows.examples.keys, keys) for rows in (one, other)]
    return one.where(masks[0]), other.where(masks[1]), int((~masks[0]).sum())


def _kind(opened: Sequence[OpenSource]) -> DataKind:
    kinds = {one.kind: one.name for one in opened}
    for kind, name in kinds.items():
        if kind not in TAKEN_AS:
            raise DataError(
                f"rows of kind {kind} hold no answers, so there is nothing to evaluate by",
                where=name,
                fix="give text, conversations or preferences",
            )
    wanted = {TAKEN_AS[kind] for kind in kinds}
    if len(wanted) > 1:
        found = "; ".join(f"{name}: {kind}" for kind, name in kinds.items())
        raise DataError(
            f"the files hold rows of different kinds ({found})", where="--data", fix="evaluate one kind at a time"
        )
    return wanted.pop()


def _places(examples: Examples, sources: Sequence[SourceConfig], data: DataConfig, formats: Formats) -> tuple[str, ...]:
    """Found by content: rows that say the same stand in their order, and parts of one that was split share its place."""
    found: dict[int, list[str]] = {}
    for source in sources:
        opened = open_source(source, formats, drop_bad=data.bad_rows == "drop")
        for row in opened.rows.rows():
            try:
                found.setdefault(content_key(opened.convert(row)), []).append(row.where)
            except LeftOut:
                continue
            except DataError:
                if data.bad_rows != "drop":
                    raise
    seen: dict[int, int] = {}
    places = []
    for key in examples.keys.tolist():
        known = found[key]
        places.append(known[min(seen.get(key, 0), len(known) - 1)])
        seen[key] = seen.get(key, 0) + 1
    return tuple(places)
