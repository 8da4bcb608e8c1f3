"""The micro-batches of a stream: every row once a pass, the same ones each time, from window to window."""

from __future__ import annotations

import threading
from itertools import chain
from typing import Any

import pytest

from luthier.core.data.batches import BatchSchedule
from luthier.core.data.examples import IGNORED
from luthier.core.errors import DataError


def content(batches: Any) -> list[Any]:
    return [[(tuple(one["input_ids"]), tuple(one["labels"])) for one in batch] for batch in batches]


@pytest.mark.parametrize("packing", [False, True])
def test_every_row_comes_once_a_pass_and_no_pass_like_another(
    make_stream: Any, texts: Any, told: Any, packing: bool
) -> None:
    stream = make_stream(texts(30), steps=1000, window=8, packing=packing)
    batches: list[list[str]] = []
    passes: list[list[str]] = []
    for batch in stream:
        batches += told([batch])
        if len(seen := list(chain(*batches))) == 30:
            passes.append(seen)
            batches = []
        if len(passes) == 3:
            break
    for rows in passes:
        assert sorted(rows, key=int) == [str(number) for number in range(30)]
        # Rows 0..7 come before 8..15: a window is shuffled, and windows stand in the order of the rows.
        assert [sorted(map(int, rows[begin : begin + 8])) for begin in range(0, 30, 8)] == [
            list(range(begin, min(begin + 8, 30))) for begin in range(0, 30, 8)
        ]
    assert passes[0] != passes[1] != passes[2]


def test_the_seed_decides(make_stream: Any, texts: Any) -> None:
    first, again, other = (content(make_stream(texts(50), steps=20, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len(first) == 20


def test_a_window_is_batched_as_rows_prepared_beforehand_are(make_stream: Any, texts: Any, tiny_tokenizer: Any) -> None:
    """The first window against a BatchSchedule over the lengths that the tokenizer itself gives: bytes and the end."""
    source = texts(40)
    stream = make_stream(source, steps=1000, window=40, seed=6)
    lengths = [len(tiny_tokenizer(source.text(number))["input_ids"]) + 1 for number in range(40)]
    expected = BatchSchedule(lengths, batch_tokens=64, seed=6).batches
    batches = [batch for _, batch in zip(expected, stream, strict=False)]
    found = [[len(one["input_ids"]) for one in batch] for batch in batches]
    assert found == [[lengths[row] for row in batch] for batch in expected]
    assert all(one["labels"][0] == IGNORED for one in chain(*batches))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_run_has_as_many_micro_batches_as_it_asks_for(make_stream: Any, texts: Any, accumulation: int) -> None:
    stream = make_stream(texts(5), steps=7, accumulation=accumulation)
    assert len(stream) == 7 * accumulation
    assert len(list(stream)) == 7 * accumulation
    assert list(stream) == []


def test_sources_are_drawn_by_weight(make_stream: Any, texts: Any, told: Any) -> None:
    one = texts(1000, lambda n: f"a{n}:", name="a", weight=3.0)
    two = texts(1000, lambda n: f"b{n}:", name="b", weight=1.0)
    stream = make_stream(one, two, mix="interleave", steps=100, window=400)
    window = stream.first
    assert window.rows == 400
    # 400 draws at 3/4: within four standard deviations of 8.7.
    assert abs(window.tallies[0].rows - 300) < 35
    rows = list(chain(*told([[window.examples[i] for i in range(400)]])))
    assert [row for row in rows if row[0] == "a"] == [f"a{n}" for n in range(window.tallies[0].rows)]


def test_memory_is_two_windows_and_a_row(make_stream: Any, texts: Any) -> None:
    """While a window trains, no more than the next one is read, however long that takes."""
    source = texts(10_000)
    stream = make_stream(source, steps=10_000, window=50)
    for _ in stream:
        if stream._ahead is not None:
            stream._ahead.leave()
        number = stream.state()["window"]
        assert len(source.read) <= 50 * (number + 2) + 1
        if number == 20:
            break
    assert stream.given > 20


def test_the_next_window_is_made_while_this_one_trains(make_stream: Any, texts: Any) -> None:
    threads = set()

    def text(number: int) -> str:
        threads.add(threading.current_thread().name)
        return f"{number}:"

    stream = make_stream(texts(100, text), steps=100, window=10)
    main = threading.current_thread().name
    assert len(list(stream)) == 100
    assert threads == {main, "luthier-stream"}


def test_no_window_is_read_beyond_the_end_of_the_run(make_stream: Any, texts: Any) -> None:
    source = texts(1000)
    stream = make_stream(source, steps=2, window=100)
    assert len(stream.first.schedule) > 2
    list(stream)
    assert len(source.read) == 101
    assert [thread.name for thread in threading.enumerate() if thread.name == "luthier-stream"] == []


def test_a_row_that_cannot_be_read_ends_the_run_where_its_window_begins(make_stream: Any, texts: Any) -> None:
    error = DataError("bad JSON", where="a:31", fix="mend it")
    stream = make_stream(texts(100, lambda n: error if n == 30 else f"{n}:"), steps=100, window=10, batch_tokens=8)
    given = 0
    with pytest.raises(DataError, match="a:31: bad JSON") as caught:
        for batch in stream:
            given += len(batch)
    assert caught.value is error
    # Windows of 10; the last row of the third is known to be no end only by looking at the bad one.
    assert given == 20


def test_what_a_thread_raises_is_raised_here(make_stream: Any, texts: Any) -> None:
    def text(number: int) -> str:
        if number == 15:
            raise MemoryError("in the thread")
        return f"{number}:"

    with pytest.raises(MemoryError, match="in the thread"):
        list(make_stream(texts(100, text), steps=100, window=10))


def test_closing_ends_the_thread(make_stream: Any, texts: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def text(number: int) -> str:
        if number == 25:
            begun.set()
            go_on.wait(20)
        return f"{number}:"

    source = texts(10_000, text)
    stream = make_stream(source, steps=100, window=20)
    iterator = iter(stream)
    next(iterator)
    assert begun.wait(20)
    stream._maker.stop()
    go_on.set()
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "luthier-stream"]
    assert max(source.read) <= 26
