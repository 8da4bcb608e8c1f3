"""Which format a source has, and its rows converted: the part that the first look and the preparation share."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from luthier.core.catalog import Offer
from luthier.core.config.schema import AUTO, SourceConfig
from luthier.core.data.conversation import Messages, check_conversation
from luthier.core.data.sources import SourceRow, locate, read_rows
from luthier.core.errors import DataError, PluginError
from luthier.core.extensions import DataFormat, Row, RowError

Formats = Mapping[str, Offer[DataFormat]]
FIRST_LOOK: Final = 20


@dataclass(frozen=True)
class OpenSource:
    """A source whose file was found and whose format is known; `why` says how it became known."""

    path: Path
    format: Offer[DataFormat]
    why: str
    limit: int | None

    def rows(self) -> Iterator[SourceRow]:
        return read_rows(self.path, self.limit)


def open_source(source: SourceConfig, formats: Formats, base: Path | None = None) -> OpenSource:
    """Find the file and its format; raises DataError when either cannot be told.

    The first rows are converted as well, so that a row without its column is reported at once and not as a format that
    was not recognised.
    """
    path = locate(source.path, base)
    first = list(islice(read_rows(path, source.rows), FIRST_LOOK))
    if source.format == AUTO:
        offer, why = _detect(path, first, formats)
    else:
        offer, why = _named(source.format, path, formats), "named in the configuration"
    for row in first:
        convert_row(offer, row)
    return OpenSource(path, offer, why, source.rows)


def convert_row(offer: Offer[DataFormat], row: SourceRow) -> Row:
    """The canonical form of one row. A RowError becomes a DataError with file, line and column."""
    data_format = offer.value
    try:
        canonical = data_format.convert(row.value)
        return {"messages": check_conversation(canonical)} if data_format.kind == "conversation" else canonical
    except RowError as error:
        where = f"{row.where}, column {error.column}" if error.column else row.where
        raise DataError(str(error), where=where, fix=f"format {data_format.name}: {data_format.columns}") from error
    except Exception as error:
        raise _plugin_failed(offer, row, "convert", error) from error


def conversation_of(offer: Offer[DataFormat], row: SourceRow) -> Messages:
    """`convert_row` of a conversation format: its messages."""
    messages: Messages = convert_row(offer, row)["messages"]
    return messages


def _named(name: str, path: Path, formats: Formats) -> Offer[DataFormat]:
    if name in formats:
        return formats[name]
    near = difflib.get_close_matches(name, sorted(formats), n=1, cutoff=0.5)
    raise DataError(
        f"there is no data format named {name!r}",
        where=str(path),
        fix=f"did you mean {near[0]!r}?" if near else f"the formats are: {', '.join(sorted(formats)) or 'none'}",
    )


def _detect(path: Path, first: Sequence[SourceRow], formats: Formats) -> tuple[Offer[DataFormat], str]:
    seen: dict[str, SourceRow] = {}
    for row in first:
        names = _candidates(row, formats)
        if len(names) > 1:
            raise DataError(
                f"the row fits several formats: {', '.join(names)}",
                where=row.where,
                fix=f"name one: {{path: {path}, format: {names[0]}}}",
            )
        for name in names:
            seen.setdefault(name, row)
    if not seen:
        known = "; ".join(f"{name} ({offer.value.columns})" for name, offer in sorted(formats.items()))
        raise DataError(
            f"no format fits the columns {', '.join(map(str, first[0].value)) or '(none)'}",
            where=first[0].where,
            fix=f"rename the columns to those of a format: {known or 'no format is installed'}",
        )
    if len(seen) > 1:
        (one, first_row), (other, second_row) = list(seen.items())[:2]
        raise DataError(
            f"the rows disagree: line {first_row.line} has the format {one}, line {second_row.line} the format {other}",
            where=second_row.where,
            fix="split the file, or name the format that all rows have",
        )
    name = next(iter(seen))
    offer = formats[name]
    rows = f"the first {len(first)} rows" if len(first) > 1 else "its only row"
    return offer, f"detected from the columns of {rows}: {offer.value.columns}"


def _candidates(row: SourceRow, formats: Formats) -> list[str]:
    """The formats of the highest priority that recognise the row."""
    fitting = []
    for name, offer in sorted(formats.items()):
        try:
            if offer.value.detect(row.value):
                fitting.append(name)
        except Exception as error:
            raise _plugin_failed(offer, row, "detect", error) from error
    best = max((formats[name].value.priority for name in fitting), default=0)
    return [name for name in fitting if formats[name].value.priority == best]


def _plugin_failed(offer: Offer[DataFormat], row: SourceRow, what: str, error: Exception) -> PluginError:
    return PluginError(
        f"`{what}` of the data format {offer.value.name!r} failed: {type(error).__name__}: {error}",
        where=row.where,
        fix=f"this is a fault of {offer.provider}, not of the row: a row it cannot use is a RowError",
    )
