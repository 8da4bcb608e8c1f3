"""A window of a stream: so many rows, tokenised and put into micro-batches, while the window before it trains.

    rows -> those of one source, some hundred at a time -> converted -> tokens -> a store in memory -> micro-batches
            '------------- in a thread, or with data.workers in other processes ------------'

A window depends on its rows, its number and the configuration alone, so it can be made again at any time.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.data.batches import BatchSchedule
from luthier.core.data.examples import Examples
from luthier.core.data.making import Encoding
from luthier.core.data.store import Chunk, TokenStore
from luthier.core.data.stream_rows import Feed, Place
from luthier.core.data.tally import Tally
from luthier.core.data.tokenise import ROWS_AT_ONCE, Pairs, convert_rows
from luthier.core.data.workers import WorkerPool, packed

if TYPE_CHECKING:
    from luthier.core.config.schema import RunConfig
    from luthier.core.contracts import DataKind
    from luthier.core.data.formats import OpenSource
    from luthier.core.data.sources import SourceRow


class Stopped(Exception):
    """The run ended while a window was being made."""


@dataclass(frozen=True, eq=False)
class Window:
    """Rows of a stream, ready to train on.

    number     counted from 0 over the whole run
    place      where its first row stands
    rows       rows read for it
    last       whether a pass ends with it
    examples   their tokens
    schedule   their micro-batches; None where no row is left
    tallies    what became of the rows of each source
    """

    number: int
    place: Place
    rows: int
    last: bool
    examples: Examples
    schedule: BatchSchedule | None
    tallies: tuple[Tally, ...]

    @property
    def digest(self) -> str:
        """Hex over its tokens."""
        return self.examples.digest


class WindowMaker:
    """Makes one window after the other. Used by one thread at a time; `stop` may be called from another."""

    def __init__(
        self,
        sources: Sequence[OpenSource],
        tokenizer: Any,
        config: RunConfig,
        kind: DataKind,
        notice: Callable[[str], None],
    ) -> None:
        data = config.data
        self.sources = tuple(sources)
        self.encoding = Encoding(tokenizer, dataclasses.replace(data, train=(), eval=0.0), kind, None)
        self.feed = Feed(
            [source.rows for source in sources],
            mix=data.mix,
            weights=[source.config.weight for source in sources],
            stop=data.stop,
            seed=config.train.seed,
        )
        self.number = 0
        self._config = config
        self._stopped = threading.Event()
        self._pool = WorkerPool()
        # While the model trains, the cores are its own: other processes tokenise only where they were asked for.
        self._workers = max(1, data.workers)
        self._setup = packed(self.encoding) if self._workers > 1 else None
        if self._workers > 1 and self._setup is None:
            notice("the tokenizer cannot be handed to other processes, so this one tokenises alone")

    def seek(self, place: Place, number: int) -> None:
        """Go on with the window of this number, which begins there."""
        self.feed.seek(place)
        self.number = number

    def make(self) -> Window:
        """The next window. Raises DataError for a bad row or one that cannot be read, Stopped after `stop`."""
        place, number, train = self.feed.place, self.number, self._config.train
        tallies = tuple(Tally() for _ in self.sources)
        examples = Examples([TokenStore.in_memory(self._chunks(tallies), self.encoding.encoder.per_row)])
        schedule = None
        if len(examples):
            schedule = BatchSchedule(
                examples.lengths,
                batch_tokens=train.batch_tokens,
                seed=train.seed + number,
                packing=self._config.data.packing,
            )
        self.number += 1
        rows = sum(tally.rows for tally in tallies)
        return Window(number, place, rows, self.feed.place.epoch > place.epoch, examples, schedule, tallies)

    def stop(self) -> None:
        """Let a window that is being made in another thread end early."""
        self._stopped.set()

    def close(self) -> None:
        """End the processes that tokenise and close the files, once no window is being made."""
        self._pool.close()
        self.feed.close()

    def _chunks(self, tallies: Sequence[Tally]) -> Iterator[Chunk]:
        whose: deque[int] = deque()
        converted = self._converted(whose)
        made = (
            map(self.encoding, converted) if self._setup is None else self._pool.run(self._setup, converted, self._workers)
        )
        for one in made:
            tally = tallies[whose.popleft()]
            tally += one.tally
            yield one.chunk

    def _converted(self, whose: deque[int]) -> Iterator[tuple[Pairs, Tally]]:
        """Canonical rows of one source at a time; its number goes into `whose`. Inside a window, order does not matter."""
        drop_bad = self._config.data.bad_rows == "drop"
        waiting: list[list[SourceRow]] = [[] for _ in self.sources]
        for number, row in self.feed.take(self._config.data.window):
            if self._stopped.is_set():
                raise Stopped
            waiting[number].append(row)
            if len(waiting[number]) == ROWS_AT_ONCE:
                whose.append(number)
                yield convert_rows(waiting[number], self.sources[number].convert, drop_bad=drop_bad)
                waiting[number] = []
        for number, rows in enumerate(waiting):
            if rows:
                whose.append(number)
                yield convert_rows(rows, self.sources[number].convert, drop_bad=drop_bad)
