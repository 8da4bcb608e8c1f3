"""A run as it goes on: live bars on a terminal, one quiet line a step anywhere else."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Self

from luthier.cli.text import duration, size
from luthier.core.extensions import RunEvent

# Of an evaluation: what it is about, and not how good the model is.
NOT_QUALITY: Final = ("step", "tokens", "rows")


class Progress:
    """An observer of RunEvents that writes to a rich console; warnings in `said` were shown before, with the plan."""

    def __init__(self, console: Any, said: Collection[str] = ()) -> None:
        self._console = console
        self._said = said
        self._live = console.is_terminal
        self._bar: Any = None
        self._task: Any = None
        self._source = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, event: RunEvent) -> None:
        values = event.values
        if event.kind == "step":
            self._step(values)
        elif event.kind == "evaluate":
            found = ", ".join(f"{name} {value:.4f}" for name, value in values.items() if name not in NOT_QUALITY)
            self._say(f"held-out {found} at step {values['step']}")
        elif event.kind == "checkpoint":
            self._say(f"checkpoint {_plain(values['folder'])}")
        elif event.kind == "warning" and event.message not in self._said:
            self._say(f"[yellow]warning[/]  {_plain(event.message)}")
        elif event.kind == "phase" and "rows" in values:
            self._rows(values)
        elif event.kind in ("phase", "notice") and event.message:
            if event.kind == "phase":
                self._close()
            self._say(_plain(event.message))
        elif event.kind in ("finish", "error"):
            self._close()

    def _step(self, values: Any) -> None:
        reward = f"reward {values['reward']:.3f}  " if "reward" in values else ""
        text = (
            f"loss {values['loss']:.4f}  {reward}{values['tokens_per_second']:.0f} tok/s  {size(values['memory'])}  "
            f"{duration(values['remaining'])} left"
        )
        if not self._live:
            self._console.print(f"step {values['step']}/{values['steps']}  {text}  lr {values['lr']:.2e}")
            return
        if self._bar is None:
            self._start(text, values["steps"])
        self._bar.update(self._task, completed=values["step"], description=text)

    def _rows(self, values: Any) -> None:
        """Rows of a source that are tokenised; a terminal sees them go by, anywhere else the phase is said once."""
        if not self._live:
            return
        if self._bar is None or values["source"] != self._source:
            self._close()
            self._source = values["source"]
            self._start(f"rows of {_plain(self._source)}", values["of"])
        self._bar.update(self._task, completed=values["rows"])

    def _start(self, text: str, total: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.description}"), console=self._console
        )
        self._bar.start()
        self._task = self._bar.add_task(text, total=total)

    def _say(self, text: str) -> None:
        (self._bar.console if self._bar is not None else self._console).print(text)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
