"""The contract of data formats: rows that are recognised and converted, and rows whose fault is named.

Without the machinery of methods: a format has no slot, changes no model, and is a pair of functions over rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import pytest

from luthier.core.catalog import Offer, Provider
from luthier.core.config import parse_config
from luthier.core.data.calls import plain
from luthier.core.data.formats import BadRow, OpenSource
from luthier.core.data.sources import SourceRow, open_rows
from luthier.core.extensions import DataFormat, Row
from luthier.core.testing.surroundings import installed_catalog


class DataFormatContract:
    """Subclass it in a test module:

        class TestFaq(DataFormatContract):
            format = "faq"
            rows = ({"q": "Open?", "a": "Yes."},)
            canonical = ({"messages": [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]},)
            required = ("q", "a")

    format      name of an installed format, or the DataFormat itself
    options     the format's options, as a source writes them beside `use`
    rows        rows of this format, each with what makes them different from each other
    canonical   what each becomes; the reference, so it is written by hand
    required    columns without which a row is an error that names the column
    others      rows that must not be recognised
    """

    format: ClassVar[str | DataFormat] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    rows: ClassVar[Sequence[Row]] = ()
    canonical: ClassVar[Sequence[Row]] = ()
    required: ClassVar[Sequence[str]] = ()
    others: ClassVar[Sequence[Row]] = ({"completely": "different"}, {})

    @cached_property
    def offer(self) -> Offer[DataFormat]:
        """The format with who brings it."""
        if isinstance(self.format, DataFormat):
            return Offer(value=self.format, provider=Provider(plugin="luthier.core.testing"))
        catalog = installed_catalog()
        catalog.data_format(self.format)  # raises with the names there are
        return catalog.formats[self.format]

    @cached_property
    def source(self) -> OpenSource:
        """A source with the rows, opened as a configuration would."""
        from luthier.core.config.validate import parse_options

        written = {"inline": [dict(row) for row in self.rows], "format": {"use": self.offer.value.name, **self.options}}
        config = parse_config({"model": "any", "data": {"train": [written]}}).data.train[0]
        options = parse_options(self.offer.value.config, dict(self.options), where="options")
        kind = self.offer.value.kind
        return OpenSource(
            config=config, rows=open_rows(config), format=self.offer, kind=kind, options=options, why="the contract's"
        )

    def numbered(self) -> Iterator[SourceRow]:
        """The rows as a file would give them."""
        assert self.rows, "set `rows` to at least one row of this format"
        return iter([SourceRow("rows", number, row) for number, row in enumerate(self.rows, 1)])

    def test_rows_are_recognised(self) -> None:
        for row in self.numbered():
            assert self.offer.value.detect(row.value) is True, f"{row.where} is not recognised: {row.value}"

    def test_other_rows_are_not(self) -> None:
        for row in self.others:
            assert not self.offer.value.detect(row), f"recognised, and of another format: {row}"

    def test_rows_become_what_they_should(self) -> None:
        """By hand in `canonical`, and checked as every run checks it."""
        assert len(self.canonical) == len(self.rows), "set `canonical` to what each of `rows` becomes"
        for row, expected in zip(self.numbered(), self.canonical, strict=True):
            assert self.source.convert(row) == plain(expected)

    def test_a_row_stays_as_it_was(self) -> None:
        for row in self.numbered():
            before = copy.deepcopy(row.value)
            self.source.convert(row)
            assert row.value == before, "convert changed the row it was given"

    def test_a_missing_column_is_named(self) -> None:
        for row in self.numbered():
            for column in self.required:
                less = replace(row, value={key: value for key, value in row.value.items() if key != column})
                with pytest.raises(BadRow) as caught:
                    self.source.convert(less)
                assert f"column {column}" in caught.value.where, f"the error does not name {column}: {caught.value}"

    def test_values_of_a_wrong_type_are_a_fault_of_the_row(self) -> None:
        """A RowError, whatever stands in a column: anything else would be a fault of the format."""
        for row in self.numbered():
            for column in self.required:
                for wrong in (7, [[7]], {"a": 7}, None):
                    with pytest.raises(BadRow):
                        self.source.convert(replace(row, value={**row.value, column: wrong}))
