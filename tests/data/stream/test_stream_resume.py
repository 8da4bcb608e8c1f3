"""A stream goes on from every micro-batch as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from luthier.core.data.formats import BadRow
from luthier.core.data.sources import SourceRow
from luthier.core.errors import DataError, OutputError
from luthier.core.serial import to_plain


def content(batches: Any) -> list[Any]:
    return [[(one["input_ids"].tolist(), one["labels"].tolist()) for one in batch] for batch in batches]


def some_bad(number: int) -> Any:
    """Of every seven rows one is bad, and of every eleven one is too long."""
    if number % 7 == 3:
        return BadRow("the text is no string", reason="no string", where=f"a:{number + 1}")
    return f"{number}:" + "x" * (300 if number % 11 == 5 else number * 37 % 50)


STREAMS: dict[str, dict[str, Any]] = {
    "one source": {"rows": [23]},
    "packed": {"rows": [15], "packing": True},
    "one after another": {"rows": [9, 4, 8]},
    "interleaved": {"rows": [20, 9], "mix": "interleave"},
    "interleaved to the end": {"rows": [7, 4], "mix": "interleave", "stop": "all_exhausted", "packing": True},
    "with bad rows": {"rows": [23, 8], "bad_rows": "drop", "text": some_bad},
    "windows of one row": {"rows": [7], "window": 1, "bad_rows": "drop", "text": some_bad},
    "a pass in one window": {"rows": [6], "window": 50},
    "in other processes": {"rows": [7], "workers": 2, "steps": 8},
}


@pytest.mark.parametrize("name", STREAMS)
def test_it_goes_on_after_every_micro_batch(make_stream: Any, texts: Any, name: str) -> None:
    options = dict(STREAMS[name])
    lengths, steps = options.pop("rows"), options.pop("steps", 20)
    text: Callable[[int], Any] = options.pop("text", lambda number: f"{number}:" + "x" * (number * 37 % 50))

    def opened() -> Any:
        sources = [texts(rows, text, name="abc"[number], weight=number + 1.0) for number, rows in enumerate(lengths)]
        return make_stream(*sources, steps=steps, **{"window": 6, "seed": 1} | options)

    straight = opened()
    batches, states = [], []
    for batch in straight:
        batches.append(content([batch])[0])
        states.append(json.dumps(straight.state()))
    assert len(batches) == steps
    report = to_plain(straight.report())
    assert json.loads(states[-1])["place"]["epoch"] >= 1

    for given, state in enumerate(states, 1):
        if options.get("workers") and given % 4:
            continue
        resumed = opened()
        resumed.restore(json.loads(state))
        assert resumed.given == given
        assert json.dumps(resumed.state()) == state
        assert resumed.epoch_of(given) == straight_epoch(opened, given)
        assert content(resumed) == batches[given:]
        assert to_plain(resumed.report()) == report
        resumed.close()


def straight_epoch(opened: Any, given: int) -> float | None:
    stream = opened()
    for _, _ in zip(range(given), stream, strict=False):
        pass
    epoch: float | None = stream.epoch_of(given)
    stream.close()
    return epoch


def test_only_what_is_needed_is_read_again(make_stream: Any, texts: Any) -> None:
    first = make_stream(texts(1000), steps=1000, window=50)
    while first.given < 100:
        next(iter(first))
    state = first.state()
    source = texts(1000)
    second = make_stream(source, steps=1000, window=50)
    second.restore(state)
    assert len(source.read) == 51
    assert source.read[0] == 50 * state["window"]


def test_rows_that_changed_are_refused(make_stream: Any, texts: Any) -> None:
    first = make_stream(texts(100), steps=1000, window=50)
    while first.given < 20:
        next(iter(first))
    state = first.state()
    row = 50 * state["window"] + 7
    changed = make_stream(
        texts(100, lambda n: "other" if n == row else f"{n}:" + "x" * (n * 37 % 50)), steps=1000, window=50
    )
    with pytest.raises(OutputError, match=r"a: the rows of window \d+ of the stream are not those[\s\S]*--overwrite"):
        changed.restore(state)


def test_another_stream_has_another_fingerprint(make_stream: Any, texts: Any) -> None:
    options: dict[str, Any] = {"steps": 5, "window": 10, "seed": 0}
    prints = [
        make_stream(texts(20), **options).fingerprint,
        make_stream(texts(20), **{**options, "steps": 6}).fingerprint,
        make_stream(texts(20), **{**options, "window": 11}).fingerprint,
        make_stream(texts(20), **{**options, "seed": 1}).fingerprint,
        make_stream(texts(20), **options, packing=True).fingerprint,
        make_stream(texts(20), **options, max_length=32).fingerprint,
        make_stream(texts(20), **options, bad_rows="drop").fingerprint,
        make_stream(texts(20), **options, accumulation=2).fingerprint,
        make_stream(texts(20), **options, batch_tokens=32).fingerprint,
        make_stream(texts(20, name="b"), **options).fingerprint,
        make_stream(texts(20, weight=2.0), **options).fingerprint,
        make_stream(texts(20, lambda n: f"{n}"), **options).fingerprint,
        make_stream(texts(20), texts(20, name="b"), **options).fingerprint,
        make_stream(texts(20), texts(20, name="b"), **options, mix="interleave").fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert make_stream(texts(20), **options).fingerprint == prints[0]


def test_rows_of_anything_have_a_fingerprint(make_stream: Any, texts: Any) -> None:
    """Columns that no format uses are read as well: bytes, dates, pictures, half of a surrogate pair."""

    def of(value: Any) -> str:
        source = texts(3)
        rows = [SourceRow("a", 1, {"text": "a", "other": value})]
        source.rows = SimpleNamespace(name="a", rows=lambda start=0: iter(rows), count=lambda: None)
        found: str = make_stream(source).fingerprint
        return found

    prints = [of(b"a"), of(b"b"), of(date(2026, 1, 1)), of("\ud800"), of({"a": [None, 1.5]}), of(object())]
    assert len(set(prints)) == len(prints)
    assert of(object()) == prints[-1]
    assert all(len(one) == 16 for one in prints)


def test_what_became_of_the_rows_is_counted(make_stream: Any, texts: Any, tiny_tokenizer: Any) -> None:
    """One pass of 77 rows: every seventh bad, every eleventh too long, one both (row 38: bad comes first)."""
    stream = make_stream(texts(77, some_bad), steps=10_000, window=20, bad_rows="drop")
    for _ in stream:
        if stream.state()["window"] == 3 and stream._at == len(stream._batches):
            break
    report = stream.report()
    bad = [n for n in range(77) if n % 7 == 3]
    long = [n for n in range(77) if n % 11 == 5 and n not in bad]
    kept = [some_bad(n) for n in range(77) if n not in bad and n not in long]
    assert report.rows == 77
    assert report.dropped["no string"] == len(bad) == 11
    assert sum(report.dropped.values()) - 11 == len(long) == 6
    assert report.kept == len(kept) == 60
    assert report.windows == 4
    assert report.tokens == sum(len(text) + 1 for text in kept)
    assert report.trained_tokens == report.tokens - 60
    assert report.longest == max(len(text) + 1 for text in kept)
    (source,) = report.sources
    assert (source.name, source.role, source.rows, source.kept, source.dropped) == ("a", "train", 77, 60, 17)
    assert any("17 of 77 rows (22%) were dropped" in warning for warning in report.warnings)


def test_before_training_the_report_is_that_of_the_first_window(make_stream: Any, texts: Any) -> None:
    stream = make_stream(texts(77, some_bad), window=20, bad_rows="drop")
    assert (stream.report().rows, stream.report().windows) == (20, 1)
    assert stream.report() == stream.report()
    next(iter(stream))
    assert (stream.report().rows, stream.report().windows) == (20, 1)


def test_a_bad_row_is_an_error_unless_it_is_to_be_dropped(make_stream: Any, texts: Any) -> None:
    with pytest.raises(BadRow, match="a:4: the text is no string"):
        _ = make_stream(texts(77, some_bad), window=20).first


def test_a_pass_without_a_usable_row_is_an_error_with_the_counts(make_stream: Any, texts: Any) -> None:
    def bad(number: int) -> Any:
        return BadRow("no", reason="no string") if number % 2 else "x" * 300

    stream = make_stream(texts(50, bad), window=8, bad_rows="drop")
    with pytest.raises(DataError, match=r"no row is left to learn from; of 50 read, 25 dropped .*25 dropped") as caught:
        list(stream)
    assert "the shortest row that was dropped has 301 tokens" in str(caught.value)


def test_windows_without_a_usable_row_are_passed_over(make_stream: Any, texts: Any, told: Any) -> None:
    def bad(number: int) -> Any:
        return f"{number}:" if number in (3, 40, 41) else BadRow("no", reason="no string")

    stream = make_stream(texts(50, bad), window=8, bad_rows="drop", steps=5)
    assert [sorted(batch) for batch in told(stream)] == [["3"], ["40", "41"], ["3"], ["40", "41"], ["3"]]
    assert stream.report().rows == 50 + 50 + 8
    assert stream.epoch_of(5) == pytest.approx(2 + 8 / 50)


def test_epochs_are_known_after_the_first_pass(make_stream: Any, texts: Any) -> None:
    stream = make_stream(texts(20, lambda n: "x" * 30), window=10, steps=100, batch_tokens=62)
    epochs = []
    for step, _ in enumerate(stream, 1):
        epochs.append(stream.epoch_of(step))
    # Two rows a batch, ten batches a pass; that the second window ends the pass is known when it begins.
    assert epochs[:5] == [None] * 5
    assert epochs[5:] == pytest.approx([step / 10 for step in range(6, 101)])
    assert stream.epoch_of(3) is None


def test_oversized_rows_are_said(make_stream: Any, texts: Any) -> None:
    stream = make_stream(texts(20, lambda n: "x" * (100 if n == 15 else 10)), window=10, steps=20)
    assert stream.first.schedule.oversized == stream.oversized == 0
    list(stream)
    assert any("rows of the stream are longer than train.batch_tokens (64)" in one for one in stream.report().warnings)
    assert np.isclose(stream.report().longest, 101)
