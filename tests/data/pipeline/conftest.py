"""Fixtures of the pipeline's tests: `prepare` with what it says, and small data that keeps several processes busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.config.schema import RunConfig
from luthier.core.data import PreparedData, prepare, workers


class Preparing:
    """`run(config, kind="conversation")`; `notices` and `progress` are what was heard."""

    def __init__(self, formats: Any, tokenizer: Any) -> None:
        self.formats, self.tokenizer = formats, tokenizer
        self.notices: list[str] = []
        self.progress: list[tuple[str, int, int | None]] = []

    def __call__(self, config: RunConfig, kind: Any = "conversation", *, tokenizer: Any = None) -> PreparedData:
        return prepare(
            config,
            self.formats,
            self.tokenizer if tokenizer is None else tokenizer,
            kind=kind,
            notice=self.notices.append,
            progress=lambda *heard: self.progress.append(heard),
        )


@pytest.fixture
def run(formats: Any, tiny_tokenizer: Any) -> Preparing:
    return Preparing(formats, tiny_tokenizer)


@pytest.fixture
def few_rows_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hundred rows are enough for several processes."""
    monkeypatch.setattr(workers, "ROWS_PER_WORKER", 100)


@pytest.fixture
def account() -> Callable[[PreparedData], None]:
    """`account(prepared)`: every row is accounted for, and the report says what the examples hold."""

    def check(prepared: PreparedData) -> None:
        report = prepared.report
        left = report.kept + report.held_out + sum(report.dropped.values())
        assert report.rows + sum(report.added.values()) == left
        assert (report.kept, report.held_out) == (prepared.train.rows, prepared.eval.rows)
        assert report.tokens == sum(len(example["input_ids"]) for example in prepared.train)
        assert report.trained_tokens == sum(int((example["labels"] != -100).sum()) for example in prepared.train)
        assert report.held_out_tokens == sum(len(example["input_ids"]) for example in prepared.eval)
        assert sum(source.rows for source in report.sources) == report.rows

    return check
