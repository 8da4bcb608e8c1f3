"""`luthier train`: plan, run, and show the way; Ctrl-C ends a run without losing it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from luthier.cli.text import duration, message_console, print_json, size


def run(config: Path, overrides: list[str], *, resume: bool, overwrite: bool, as_json: bool) -> int:
    """Train a configuration; progress goes to standard error, the report to standard output."""
    import luthier
    from luthier.cli.plan import show_plan

    console = message_console()
    made = luthier.plan(luthier.load_config(config, overrides))
    show_plan(made, console)
    results = train_with_progress(made, resume=resume, overwrite=overwrite)
    if as_json:
        print_json(results)
    else:
        print_report(results)
    return 0


def train_with_progress(plan: Any, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Run a plan that was shown, with a progress display on standard error and Ctrl-C as a polite stop."""
    import luthier
    from luthier.cli.progress import Progress

    said = (*plan.warnings, *(plan.data_look.warnings if plan.data_look else ()))
    with stop_on_interrupt() as stop, Progress(message_console(), said) as progress:
        results: dict[str, Any] = luthier.train(plan, resume=resume, overwrite=overwrite, observers=[progress], stop=stop)
    return results


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM) sets the event, the second raises KeyboardInterrupt."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        message_console().print("stopping: a checkpoint is saved after this step (Ctrl-C again stops at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_report(results: dict[str, Any]) -> None:
    """The end of a run as a person reads it, on standard output."""
    memory = results["memory"]
    folder = results["output"]
    held_out = f"   held out {results['eval_loss']:.4f}" if "eval_loss" in results else ""
    measured, predicted = size(memory["measured_peak"]), size(memory["predicted"]["peak"])
    trained = f"{results['trained_tokens_per_second']:.0f}"
    lines = [
        ("loss", f"{results['train_loss']:.4f}{held_out}"),
        ("speed", f"{results['tokens_per_second']:.0f} tokens/s, of these {trained} trained"),
        ("memory", f"peak {measured} {memory['measured_is']}; predicted {predicted} of tensors"),
        ("time", duration(results["seconds"])),
        ("written", f"{folder}/  (weights, all_results.json, training_loss.png, README.md)"),
    ]
    if results.get("best_step") is not None:
        lines.insert(1, ("best", f"the evaluation at step {results['best_step']}, of which the weights are"))
    if results.get("ended_early"):
        lines.insert(1, ("ended", f"early: {results['ended_early']}"))
    for label, text in lines:
        print(f"{label:<9} {text}")
