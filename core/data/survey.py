"""A first look at the data, before anything heavy is loaded: what the plan says about each source."""

from __future__ import annotations

from pathlib import Path

from luthier.core.config.schema import DataConfig, SourceConfig
from luthier.core.data.formats import Formats, open_source
from luthier.core.data.sources import count_rows
from luthier.core.plan import SourceSummary


def survey(data: DataConfig, formats: Formats, base: Path | None = None) -> tuple[SourceSummary, ...]:
    """File, format, kind and number of rows of every source, training sources first.

    `base` is the configuration file's folder (see sources.py). Raises DataError for a file that cannot be read, a format
    that is unknown or cannot be told from the columns, and faulty rows among the first 20 of each source.
    """
    held_out = data.eval if isinstance(data.eval, tuple) else ()
    training = tuple(_look(source, formats, base) for source in data.train)
    return training + tuple(_look(source, formats, base, "eval") for source in held_out)


def _look(source: SourceConfig, formats: Formats, base: Path | None, role: str = "train") -> SourceSummary:
    opened = open_source(source, formats, base)
    return SourceSummary(
        path=str(opened.path),
        format=opened.format.value.name,
        kind=opened.format.value.kind,
        rows=count_rows(opened.path, opened.limit),
        why=opened.why,
        role="eval" if role == "eval" else "train",
    )
