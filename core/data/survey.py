"""A first look at the data, before anything heavy is loaded: what the plan says about each source."""

from __future__ import annotations

from pathlib import Path

from luthier.core.config.schema import DataConfig, SourceConfig
from luthier.core.data.formats import Formats, open_source
from luthier.core.errors import DataError
from luthier.core.plan import SourceSummary


def survey(data: DataConfig, formats: Formats, base: Path | None = None) -> tuple[SourceSummary, ...]:
    """Name, format, kind and number of rows of every source, training sources first.

    `base` is the configuration file's folder (see sources/). Raises DataError where there is no source, for rows that cannot
    be read, a format that is unknown or cannot be told from the columns, and (unless `data.bad_rows: drop`)
    faulty rows among the first 20.
    """
    if not data.train:
        raise DataError("names no source", where="data.train", fix="give at least one: data.train: [rows.jsonl]")
    held_out = data.eval if isinstance(data.eval, tuple) else ()
    training = tuple(_look(source, data, formats, base) for source in data.train)
    return training + tuple(_look(source, data, formats, base, "eval") for source in held_out)


def _look(source: SourceConfig, data: DataConfig, formats: Formats, base: Path | None, role: str = "train") -> SourceSummary:
    streaming = data.streaming and role == "train"
    opened = open_source(source, formats, base, streaming=streaming, drop_bad=data.bad_rows == "drop")
    return SourceSummary(
        path=opened.name,
        format=opened.format.value.name,
        kind=opened.kind,
        rows=None if streaming else opened.rows.count(),
        why=opened.why,
        role="eval" if role == "eval" else "train",
    )
