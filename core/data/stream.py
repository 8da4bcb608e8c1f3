"""Training on rows that are read, tokenised and put into micro-batches while the model trains.

    rows (stream_rows.py) -> windows of `data.window` rows (stream_windows.py) -> micro-batches, window by window
                             window 7 trains while window 8 is made in a thread

Two windows are in memory, whatever the data's size. What a window holds and in which order follows from the configuration
alone, so the place of a run is a few numbers: a run that was killed reads on from the first row of the window in which its
last checkpoint was saved, makes that window again, and leaves out the micro-batches that it had trained on.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from luthier.core.data.report import DataReport, nothing_left
from luthier.core.data.stream_report import Account, stream_report
from luthier.core.data.stream_rows import Place
from luthier.core.errors import OutputError
from luthier.core.frozen import canonical_json
from luthier.core.serial import to_plain

if TYPE_CHECKING:
    from luthier.core.config.schema import RunConfig
    from luthier.core.data.batches import BatchSchedule
    from luthier.core.data.examples import Example
    from luthier.core.data.stream_windows import Window, WindowMaker

T = TypeVar("T")
# Rows of each source that its fingerprint covers: those that were looked at when it was opened, so they can be read.
FIRST_ROWS: Final = 20
# How long the end of a run waits for a thread that hangs in reading; it dies with the process.
GRACE: Final = 10.0


class StreamSchedule:
    """The micro-batches of a run over a stream: `steps` optimizer steps of `accumulation` each, known one window ahead.

    Iterating goes on at the present place and gives lists of `Example`; `given` counts them over the whole run. `held_out`
    is the report of the rows to evaluate on, which are no part of the stream. A row that is wrong raises DataError where
    its window would begin to train; so does a whole pass without a usable row.
    """

    def __init__(self, maker: WindowMaker, config: RunConfig) -> None:
        assert config.train.max_steps is not None
        self.steps = config.train.max_steps
        self.accumulation = config.train.accumulation
        self.batch_tokens = config.train.batch_tokens
        self.packing = config.data.packing
        self.given = 0
        self.held_out: DataReport | None = None
        self._maker = maker
        self._config = config
        self._account = Account.start(len(maker.sources))
        # The account without the present window, which a run that goes on in it counts again.
        self._before = self._account.to_plain()
        self._ahead: Ahead[Window] | None = None
        self._first: Window | None = None
        self._window: Window | None = None
        self._batches: list[list[int]] = []
        self._at = 0

    def __len__(self) -> int:
        """Micro-batches of the run."""
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[Example]]:
        if self._window is None and self.given < len(self):
            self._enter(self.first)
        self._first = None
        while self.given < len(self):
            if self._at == len(self._batches):
                self._enter(self._next())
            self._look_ahead()
            assert self._window is not None
            rows = self._batches[self._at]
            self._at += 1
            self.given += 1
            yield [self._window.examples[row] for row in rows]

    @property
    def first(self) -> Window:
        """The run's first window that has micro-batches, for whoever wants to see rows before training begins."""
        if self._first is None:
            if self._maker.number:
                raise RuntimeError("the first window of the stream is gone: training has begun")
            self._first = self._usable(self._maker.make())
        return self._first

    @property
    def oversized(self) -> int:
        """Rows longer than `batch_tokens`, of the windows begun or, before training, of the first one."""
        return self._account.oversized or (_schedule(self._first).oversized if self._first else 0)

    @property
    def padding(self) -> float:
        """Of the first window, as of a BatchSchedule."""
        return _schedule(self.first).padding

    @property
    def efficiency(self) -> float:
        """Of the first window, as of a BatchSchedule."""
        return _schedule(self.first).efficiency

    def epoch_of(self, step: int) -> float | None:
        """Passes done after `step` optimizer steps, by rows read; None while it is not known how many rows a pass has.

        Known for the step that trained last only: of any other one, the stream does not remember the rows.
        """
        window = self._window
        rows = self._account.rows_per_pass or self._counted
        if window is None or rows is None or step * self.accumulation != self.given:
            return None
        place = window.place
        return place.epoch + (place.taken + window.rows * self._at / len(self._batches)) / rows

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over the sources and everything that decides the micro-batches.

        Of a source they cover its configuration and its first rows: reading it all would take as long as the pass itself.
        That a run goes on with the rows it began with is checked where it goes on, over the whole window there.
        """
        digest = hashlib.sha256()
        data, train = self._config.data, self._config.train
        for source in self._maker.sources:
            first = [row.value for row in islice(source.rows.rows(), FIRST_ROWS)]
            # Rows may have columns of bytes and dates, and texts that cannot be encoded, whether a format uses them or not.
            content = to_plain([source.name, source.config, first])
            digest.update(json.dumps(content, sort_keys=True, default=_shown).encode())
        options = [data.mix, data.stop, data.window, data.packing, data.bad_rows, data.max_length]
        batches = [train.seed, train.batch_tokens, train.accumulation, train.max_steps]
        digest.update(canonical_json([options, batches, self._maker.encoding.encoder.fingerprint()]).encode())
        return digest.hexdigest()[:16]

    # ---- where it stands

    def state(self) -> dict[str, Any]:
        """Where the stream stands, JSON-shaped, after the micro-batches given so far; `restore` takes it."""
        if self._window is None:
            raise RuntimeError("the stream has not begun")
        return {
            "given": self.given,
            "window": self._window.number,
            "place": to_plain(self._window.place),
            "batches": self._at,
            "digest": self._window.digest,
            "account": self._before,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the micro-batches that a `state` counts. Raises OutputError where the rows there are others now."""
        self.given = int(state["given"])
        self._maker.seek(Place.from_plain(state["place"]), int(state["window"]))
        self._account = Account.from_plain(state["account"])
        window = self._maker.make()
        if window.digest != state["digest"]:
            raise OutputError(
                f"the rows of window {window.number} of the stream are not those that the checkpoint was saved with",
                where=", ".join(self._names),
                fix="resume with the data of the first run, or start anew with --overwrite",
            )
        self._enter(window)
        self._at = int(state["batches"])

    def close(self) -> None:
        """End the thread and the processes that make windows; nothing is to be read any more."""
        self._maker.stop()
        if self._ahead is not None:
            self._ahead.leave()
            self._ahead = None
        self._maker.close()

    def report(self) -> DataReport:
        """What became of the rows so far (before training: of those of the first window) and of the ones held out."""
        account = Account.from_plain(self._account.to_plain())
        if self._window is None:
            account.add(self.first)
        return stream_report(account, self._maker.sources, self._maker.encoding.encoder, self.batch_tokens, self.held_out)

    # ---- from window to window

    def _enter(self, window: Window) -> None:
        self._before = self._account.to_plain()
        self._account.add(window)
        self._window, self._batches, self._at = window, list(_schedule(window)), 0

    def _next(self) -> Window:
        made = self._ahead.result() if self._ahead is not None else self._maker.make()
        self._ahead = None
        return self._usable(made)

    def _usable(self, window: Window) -> Window:
        """This window, or the next one of which a row is left; those in between are counted."""
        while window.schedule is None:
            nothing_kept = not self._account.kept_in_pass
            self._account.add(window)
            if window.last and nothing_kept:
                raise nothing_left(self._names, self._account.tally, self._maker.encoding.encoder.labels_from)
            window = self._maker.make()
        return window

    def _look_ahead(self) -> None:
        left = len(self) - self.given
        if self._ahead is None and left > len(self._batches) - self._at:
            self._ahead = Ahead(self._maker.make)

    @property
    def _names(self) -> list[str]:
        return [source.name for source in self._maker.sources]

    @cached_property
    def _counted(self) -> int | None:
        return self._maker.feed.rows_per_pass


def _shown(value: object) -> str:
    """What is no JSON; a picture, say, shows as its address in memory, which is another one each time."""
    return repr(value) if isinstance(value, bytes) else type(value).__name__


def _schedule(window: Window) -> BatchSchedule:
    assert window.schedule is not None
    return window.schedule


class Ahead(Generic[T]):
    """Something made in a thread while this one goes on."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="luthier-stream", daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Wait for it; raises here what was raised there."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made

    def leave(self) -> None:
        """Wait for the end of the thread, but not for ever, and not for what it made."""
        self._thread.join(GRACE)

    def _run(self) -> None:
        try:
            self._made = self._make()
        except BaseException as error:
            # Raised again by `result`, where somebody listens.
            self._error = error
