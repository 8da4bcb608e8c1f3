"""What a stream has given so far, counted window by window, in numbers that a checkpoint keeps."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from luthier.core.data.report import DataReport, SourceReport, frozen, tally_warnings
from luthier.core.data.tally import Tally
from luthier.core.frozen import FrozenDict
from luthier.core.serial import to_plain

if TYPE_CHECKING:
    from luthier.core.data.encode import Encoder
    from luthier.core.data.formats import OpenSource
    from luthier.core.data.stream_windows import Window

NOTHING_HELD_OUT: Final = DataReport(
    rows=0,
    kept=0,
    held_out=0,
    dropped=FrozenDict(),
    tokens=0,
    trained_tokens=0,
    held_out_tokens=0,
    longest=0,
    labels_from="",
)


@dataclass(kw_only=True)
class Account:
    """Of the windows begun: how many, what became of the rows of each source, their tokens, and the longest row.

    oversized      rows longer than `train.batch_tokens`
    kept_in_pass   rows kept in the present pass
    rows_per_pass  rows read in a whole pass, once one is done
    """

    tallies: list[Tally]
    windows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    oversized: int = 0
    kept_in_pass: int = 0
    rows_per_pass: int | None = None

    @classmethod
    def start(cls, sources: int) -> Account:
        return cls(tallies=[Tally() for _ in range(sources)])

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Account:
        return cls(**{**plain, "tallies": [Tally.from_plain(tally) for tally in plain["tallies"]]})

    def to_plain(self) -> dict[str, Any]:
        """JSON-shaped; `from_plain` reads it."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @property
    def tally(self) -> Tally:
        """Of all sources together, a new one each time."""
        total = Tally()
        for tally in self.tallies:
            total += tally
        return total

    def add(self, window: Window) -> None:
        """Count a window that is begun."""
        for mine, its in zip(self.tallies, window.tallies, strict=True):
            mine += its
        self.windows += 1
        self.tokens += window.examples.tokens
        self.trained_tokens += window.examples.trained_tokens
        if window.schedule is not None:
            self.longest = max(self.longest, int(window.examples.lengths.max()))
            self.oversized += window.schedule.oversized
        self.kept_in_pass += window.examples.rows
        if window.last:
            self.kept_in_pass, self.rows_per_pass = 0, window.place.taken + window.rows


def stream_report(
    account: Account, sources: Sequence[OpenSource], encoder: Encoder, batch_tokens: int, held_out: DataReport | None
) -> DataReport:
    """The account as a DataReport; `held_out` is the one of the rows to evaluate on, which were prepared beforehand.

    `duplicates` stays 0: a stream does not remember the rows that it has read.
    """
    tally = account.tally
    other = held_out or NOTHING_HELD_OUT
    return DataReport(
        rows=tally.rows + other.rows,
        kept=tally.kept,
        held_out=other.kept,
        dropped=frozen(tally.dropped + Counter(other.dropped)),
        cut=frozen(tally.cut + Counter(other.cut)),
        added=frozen(tally.added + Counter(other.added)),
        notes=frozen(tally.notes + Counter(other.notes)),
        tokens=account.tokens,
        trained_tokens=account.trained_tokens,
        held_out_tokens=other.tokens,
        longest=account.longest,
        labels_from=encoder.labels_from,
        template=encoder.template,
        sources=(
            *(_source_report(source, one) for source, one in zip(sources, account.tallies, strict=True)),
            *(dataclasses.replace(source, role="eval") for source in other.sources),
        ),
        windows=account.windows,
        warnings=(*_warnings(account, tally, batch_tokens), *other.warnings),
    )


def _source_report(source: OpenSource, tally: Tally) -> SourceReport:
    return SourceReport(
        name=source.name,
        role="train",
        format=source.format.value.name,
        rows=tally.rows,
        kept=tally.kept,
        dropped=tally.dropped.total(),
        cut=tally.cut_rows,
        cached=False,
    )


def _warnings(account: Account, tally: Tally, batch_tokens: int) -> Iterator[str]:
    yield from tally_warnings(tally)
    if account.oversized:
        yield (
            f"{account.oversized} rows of the stream are longer than train.batch_tokens ({batch_tokens}): each was a batch "
            "of its own, which needs more memory"
        )
