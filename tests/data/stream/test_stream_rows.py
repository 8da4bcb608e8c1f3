"""The rows of a stream: in the order of the same sources prepared beforehand, and enterable at any place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.core.data.mixing import interleave
from luthier.core.data.sources import SourceRow
from luthier.core.data.stream_rows import Feed, Place
from luthier.core.errors import DataError
from luthier.core.serial import to_plain


class Numbers:
    """A source of the rows {"n": 0}, {"n": 1}, ...; `read` counts the rows that were asked of it."""

    def __init__(self, name: str, rows: int, counted: bool = True) -> None:
        self.name, self._rows, self._counted, self.read = name, rows, counted, 0

    def rows(self, start: int = 0) -> Iterator[SourceRow]:
        for number in range(start, self._rows):
            self.read += 1
            yield SourceRow(Path(self.name), number + 1, {"n": number})

    def count(self) -> int | None:
        return self._rows if self._counted else None


def feed(*lengths: int, counted: bool = True, **options: Any) -> Feed:
    sources: Any = [Numbers("abc"[number], rows, counted) for number, rows in enumerate(lengths)]
    return Feed(sources, **options)


def take(stream: Feed, count: int) -> str:
    """`a0 a1 b0`: which rows of which sources."""
    return " ".join(f"{'abc'[number]}{row.value['n']}" for number, row in stream.take(count))


def test_sources_stand_one_after_another_and_a_pass_ends_with_the_last() -> None:
    stream = feed(3, 2)
    assert take(stream, 2) == "a0 a1"
    assert take(stream, 100) == "a2 b0 b1"
    assert stream.place == Place.start(2, epoch=1)
    assert take(stream, 4) == "a0 a1 a2 b0"
    assert stream.place == Place(epoch=1, taken=4, drawn=0, read=(0, 1), used_up=(True, False))


def test_the_end_of_a_pass_is_known_with_its_last_row() -> None:
    stream = feed(4)
    assert take(stream, 4) == "a0 a1 a2 a3"
    assert stream.place.epoch == 1


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("seed", [0, 5])
def test_interleaving_draws_what_preparing_draws(stop: Any, seed: int) -> None:
    lengths, weights = (7, 30, 4), (1.0, 3.0, 0.5)
    sources, rows = interleave(lengths, weights, stop, seed)
    expected = " ".join(f"{'abc'[source]}{row}" for source, row in zip(sources, rows, strict=True))
    stream = feed(*lengths, mix="interleave", weights=weights, stop=stop, seed=seed)
    for epoch in (1, 2):
        assert take(stream, 10_000) == expected
        assert stream.place.epoch == epoch


OPTIONS: list[dict[str, Any]] = [
    {},
    {"mix": "interleave", "weights": (1, 2, 3), "stop": "first_exhausted"},
    {"mix": "interleave", "weights": (1, 2, 3), "stop": "all_exhausted"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_stream_goes_on_from_every_place(options: dict[str, Any]) -> None:
    stream = feed(5, 9, 6, **options)
    whole = [take(stream, 1) for _ in range(60)]
    assert stream.place.epoch >= 1
    for start in range(50):
        first = feed(5, 9, 6, **options)
        for _ in range(start):
            take(first, 1)
        saved = json.loads(json.dumps(to_plain(first.place)))
        second = feed(5, 9, 6, **options)
        second.seek(Place.from_plain(saved))
        assert second.place == first.place
        assert [take(second, 1) for _ in range(60 - start)] == whole[start:]


def test_no_more_than_a_row_of_each_source_is_read_ahead() -> None:
    source: Any = Numbers("a", 1000)
    stream = Feed([source])
    take(stream, 10)
    assert source.read == 11
    stream.seek(Place(epoch=0, taken=900, drawn=0, read=(900,), used_up=(False,)))
    take(stream, 5)
    assert source.read == 11 + 6


def test_rows_of_a_pass_are_known_where_sources_count_theirs() -> None:
    assert feed(3, 4).rows_per_pass == 7
    assert feed(3, 4, counted=False).rows_per_pass is None
    assert feed(3, 4, mix="interleave", weights=(1, 1)).rows_per_pass is None


def test_sources_without_rows() -> None:
    stream = feed(0, 2)
    assert take(stream, 5) == "a0 a1".replace("a", "b")
    nothing = feed(0, 0)
    assert take(nothing, 5) == ""
    assert nothing.place.epoch == 1
    with pytest.raises(DataError, match=r"a: holds no rows[\s\S]*leave this source out"):
        take(feed(0, 2, mix="interleave", weights=(1, 1)), 5)


def test_a_source_that_became_shorter_is_refused() -> None:
    stream = feed(5)
    stream.seek(Place(epoch=0, taken=8, drawn=0, read=(8,), used_up=(False,)))
    with pytest.raises(DataError, match=r"no row after the first 8[\s\S]*resume with the data of the first run"):
        take(stream, 1)


def test_a_file_that_cannot_be_read_is_named() -> None:
    class Broken(Numbers):
        def rows(self, start: int = 0) -> Iterator[SourceRow]:
            yield from super().rows(start)
            raise OSError(5, "Input/output error")

    source: Any = Broken("a", 3)
    with pytest.raises(DataError, match="a: cannot be read: Input/output error"):
        take(Feed([source]), 5)
