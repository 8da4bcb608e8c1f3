"""Telling observers what happens in a run, without letting them disturb it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from luthier.core.extensions import RunEvent

logger: Final = logging.getLogger("luthier")


class Broadcast:
    """Hands each event to every observer. An observer's error is logged once with its text, and counted."""

    def __init__(self, observers: Sequence[Callable[[RunEvent], None]]) -> None:
        self._observers = list(observers)
        self._failed: set[int] = set()
        self.errors = 0

    def __call__(self, event: RunEvent) -> None:
        for index, observer in enumerate(self._observers):
            try:
                observer(event)
            except Exception as error:
                self.errors += 1
                if index not in self._failed:
                    self._failed.add(index)
                    logger.warning(
                        "an observer failed on the event %r and is still called: %s: %s",
                        event.kind,
                        type(error).__name__,
                        error,
                    )
