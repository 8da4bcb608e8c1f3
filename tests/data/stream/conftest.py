"""Streams small enough for a test: texts of known numbers in memory, with the tiny byte tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.config.schema import DataConfig, ModelConfig, RunConfig, SourceConfig, TrainConfig
from luthier.core.data.formats import BadRow
from luthier.core.data.sources import SourceRow
from luthier.core.data.stream import StreamSchedule
from luthier.core.data.stream_windows import WindowMaker
from luthier.core.errors import DataError


@dataclass
class Texts:
    """An open source of texts: row n is `text(n)`, or is raised where it is an error. Counts what was read."""

    name: str
    count_of_rows: int
    text: Callable[[int], Any]
    weight: float = 1.0
    kind: str = "text"
    read: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = SimpleNamespace(name=self.name, rows=self._rows, count=lambda: None)
        self.config = SourceConfig(path=self.name, weight=self.weight)
        self.format = SimpleNamespace(value=SimpleNamespace(name="text"))

    def _rows(self, start: int = 0) -> Iterator[SourceRow]:
        for number in range(start, self.count_of_rows):
            value = self.text(number)
            if isinstance(value, DataError) and not isinstance(value, BadRow):
                raise value
            self.read.append(number)
            yield SourceRow(Path(self.name), number + 1, {"text": value})

    @staticmethod
    def convert(row: SourceRow) -> Any:
        if isinstance(row.value["text"], Exception):
            raise row.value["text"]
        return dict(row.value)


def numbered(number: int) -> str:
    """Texts of very unequal length, each told by its first characters."""
    return f"{number}:" + "x" * (number * 37 % 50)


MakeStream = Callable[..., StreamSchedule]


@pytest.fixture
def texts() -> Callable[..., Texts]:
    """`texts(rows, text=numbered, name="a", weight=1.0)`"""

    def make(rows: int, text: Callable[[int], Any] = numbered, name: str = "a", weight: float = 1.0) -> Texts:
        return Texts(name, rows, text, weight)

    return make


@pytest.fixture
def make_stream(tiny_tokenizer: Any) -> Iterator[MakeStream]:
    """`make_stream(*sources, steps=10, window=8, **data and train)`; closed at the end."""
    made: list[StreamSchedule] = []

    def make(*sources: Any, steps: int = 10, window: int = 8, **options: Any) -> StreamSchedule:
        train = {key: options.pop(key) for key in ("seed", "accumulation", "batch_tokens") if key in options}
        data = DataConfig(
            train=tuple(source.config for source in sources), streaming=True, window=window, **{"max_length": 256} | options
        )
        settings = {"batch_tokens": 64, "max_steps": steps} | train
        config = RunConfig(model=ModelConfig(name="tiny"), data=data, train=TrainConfig(**settings))
        stream = StreamSchedule(WindowMaker(sources, tiny_tokenizer, config, "text", print), config)
        made.append(stream)
        return stream

    yield make
    for stream in made:
        stream.close()


@pytest.fixture
def told(tiny_tokenizer: Any) -> Callable[[Any], list[list[str]]]:
    """`told(batches)`: the number at the beginning of each example, batch by batch."""

    def numbers(batches: Sequence[Any]) -> list[list[str]]:
        texts = [[tiny_tokenizer.decode(one["input_ids"], skip_special_tokens=True) for one in batch] for batch in batches]
        return [[text.partition(":")[0] for text in batch] for batch in texts]

    return numbers
