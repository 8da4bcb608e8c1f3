"""Which format a source has, and its rows converted: the part that the first look, the preparation and streams share."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from luthier.core.catalog import Offer
from luthier.core.config.schema import AUTO, SourceConfig
from luthier.core.config.validate import parse_options
from luthier.core.contracts import DataKind
from luthier.core.data.columns import Columns, check_media
from luthier.core.data.conversation import check_row
from luthier.core.data.kinds import LeftOut, conversion, possible
from luthier.core.data.sources import RowSource, SourceRow, open_rows
from luthier.core.errors import DataError, PlanRefused, PluginError
from luthier.core.extensions import DataFormat, Row, RowError
from luthier.core.frozen import thaw

__all__ = ["BadRow", "Formats", "LeftOut", "OpenSource", "open_source"]

Formats = Mapping[str, Offer[DataFormat]]
FIRST_LOOK: Final = 20


class BadRow(DataError):
    """A row that its format cannot convert; `reason` says why without what belongs to this row alone, for counting."""

    def __init__(self, message: str, *, reason: str, where: str = "", fix: str = "") -> None:
        self.reason = reason
        super().__init__(message, where=where, fix=fix)


@dataclass(frozen=True)
class OpenSource:
    """A source that was found and whose format is known. Goes to another process without its rows (`rows=None`).

    kind      what is learned from it: that of the format, or `SourceConfig.kind`
    options   the format's `config`, as the source gives it
    why       how the format became known
    """

    config: SourceConfig
    rows: RowSource
    format: Offer[DataFormat]
    kind: DataKind
    options: Any
    why: str
    columns: Columns = Columns({})  # never changed

    @property
    def name(self) -> str:
        """As reports and errors call it."""
        return self.rows.name

    def convert(self, row: SourceRow) -> Row:
        """The checked canonical form of one row, of the source's kind.

        Raises BadRow, with file, row and column, where the format cannot; LeftOut where `kind` has no use for the row;
        PluginError where the format fails otherwise.
        """
        try:
            renamed = self.columns.renamed(row.value)
            if self.kind != "text":
                check_media(renamed)
            canonical = check_row(self.format.value.kind, self._converted(renamed))
            return check_row(self.kind, self._kind_of(canonical)) if self._kind_of else canonical
        except RowError as error:
            raise self._bad(error, row) from error
        except LeftOut:
            raise
        except Exception as error:
            raise _plugin_failed(self.format, row, "convert", error) from error

    @cached_property
    def _converted(self) -> Callable[[Row], Any]:
        convert = self.format.value.convert
        return partial(convert, options=self.options) if "options" in inspect.signature(convert).parameters else convert

    @cached_property
    def _kind_of(self) -> Callable[[Row], Row] | None:
        given = self.format.value.kind
        return conversion(given, self.kind) if given != self.kind else None

    def _bad(self, error: RowError, row: SourceRow) -> BadRow:
        column = self.columns.written(error.column)
        data_format = self.format.value
        return BadRow(
            str(error),
            reason=RowError(str(error), column=column).reason,
            where=f"{row.where}, column {column}" if column else row.where,
            fix=f"format {data_format.name}: {data_format.columns}; or leave such rows out with `data.bad_rows: drop`",
        )


def open_source(
    source: SourceConfig,
    formats: Formats,
    base: Path | None = None,
    *,
    streaming: bool = False,
    drop_bad: bool = False,
) -> OpenSource:
    """Find the rows and their format; raises DataError when either cannot be told.

    The first rows are converted as well, so that a row without its column is reported at once and not as a format that
    was not recognised; with `drop_bad`, bad rows among them are left for the count.
    """
    rows = open_rows(source, base, streaming=streaming)
    first = list(islice(rows.rows(), FIRST_LOOK))
    columns = Columns(source.columns)
    columns.check(first, rows.name)
    if source.format.use == AUTO:
        offer, why = _detect(rows.name, [replace(row, value=columns.renamed(row.value)) for row in first], formats)
    else:
        offer, why = _named(source.format.use, rows.name, formats), "named in the configuration"
    opened = OpenSource(
        config=source,
        rows=rows,
        format=offer,
        kind=_kind(source, offer, rows.name),
        options=_options(source, offer, rows.name),
        why=why,
        columns=columns,
    )
    for row in first:
        try:
            opened.convert(row)
        except LeftOut:
            continue
        except BadRow:
            if not drop_bad:
                raise
    return opened


def _kind(source: SourceConfig, offer: Offer[DataFormat], name: str) -> DataKind:
    given = offer.value.kind
    if source.kind == AUTO:
        return given
    if conversion(given, source.kind) is None:
        ways = ", ".join(possible(given))
        message = f"rows of the format {offer.value.name} hold {given} data, which cannot be taken as {source.kind} data"
        raise DataError(message, where=name, fix=f"`kind` can be {ways}, or left out")
    return source.kind


def _options(source: SourceConfig, offer: Offer[DataFormat], name: str) -> Any:
    try:
        return parse_options(offer.value.config, thaw(source.format.options), where="format")
    except PlanRefused as refused:
        said = "; ".join(f"{problem.where}: {problem.reason}" for problem in refused.problems)
        fix = next((problem.fix for problem in refused.problems if problem.fix), f"see `luthier explain {offer.value.name}`")
        message = f"the options of the format {offer.value.name} cannot be used: {said}"
        raise DataError(message, where=name, fix=fix) from None


def _named(name: str, where: str, formats: Formats) -> Offer[DataFormat]:
    if name in formats:
        return formats[name]
    near = difflib.get_close_matches(name, sorted(formats), n=1, cutoff=0.5)
    raise DataError(
        f"there is no data format named {name!r}",
        where=where,
        fix=f"did you mean {near[0]!r}?" if near else f"the formats are: {', '.join(sorted(formats)) or 'none'}",
    )


def _detect(source: str, first: Sequence[SourceRow], formats: Formats) -> tuple[Offer[DataFormat], str]:
    seen: dict[str, SourceRow] = {}
    for row in first:
        names = _candidates(row, formats)
        if len(names) > 1:
            raise DataError(
                f"the row fits several formats: {', '.join(names)}",
                where=row.where,
                fix=f"name one: `format: {names[0]}`",
            )
        for name in names:
            seen.setdefault(name, row)
    if not seen:
        has = ", ".join(map(str, first[0].value)) or "(none)"
        raise DataError(f"no format fits the columns {has}", where=first[0].where, fix=_nearest_format(first[0], formats))
    if len(seen) > 1:
        (one, first_row), (other, second_row) = list(seen.items())[:2]
        unit = first_row.unit
        raise DataError(
            f"the rows disagree: {unit} {first_row.line} has the format {one}, {unit} {second_row.line} the format {other}",
            where=second_row.where,
            fix="split the file, or name the format that all rows have",
        )
    name = next(iter(seen))
    offer = formats[name]
    rows = f"the first {len(first)} rows" if len(first) > 1 else "its only row"
    return offer, f"detected from the columns of {rows}: {offer.value.columns}"


def _nearest_format(row: SourceRow, formats: Formats) -> str:
    """What to write: the columns of the formats, those first whose words the row's columns have most of."""

    def shared(name: str) -> int:
        return len(set(map(str, row.value)) & set(_words(formats[name].value.columns)))

    if not formats:
        return "no format is installed"
    nearest = sorted(formats, key=lambda name: (-shared(name), name))[:6]
    known = "; ".join(f"{name} ({formats[name].value.columns})" for name in nearest)
    return f"say which column stands for which, `columns: {{instruction: ..., output: ...}}`; formats: {known}"


def _words(text: str) -> Iterable[str]:
    return "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text).split()


def _candidates(row: SourceRow, formats: Formats) -> list[str]:
    """The formats of the highest priority that recognise the row."""
    fitting = list(_fitting(row, formats))
    best = max((formats[name].value.priority for name in fitting), default=0)
    return [name for name in fitting if formats[name].value.priority == best]


def _fitting(row: SourceRow, formats: Formats) -> Iterator[str]:
    for name, offer in sorted(formats.items()):
        try:
            if offer.value.detect(row.value):
                yield name
        except Exception as error:
            raise _plugin_failed(offer, row, "detect", error) from error


def _plugin_failed(offer: Offer[DataFormat], row: SourceRow, what: str, error: Exception) -> PluginError:
    return PluginError(
        f"`{what}` of the data format {offer.value.name!r} failed: {type(error).__name__}: {error}",
        where=row.where,
        fix=f"this is a fault of {offer.provider}, not of the row: a row it cannot use is a RowError",
    )
