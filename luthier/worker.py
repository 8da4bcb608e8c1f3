"""A plan run in a clean Python process, for methods that must be imported before transformers.

The parent writes plan.json into a temporary folder and starts `python -m luthier.worker`; the worker sends every RunEvent
back as a line of JSON over a pipe of its own, so that what libraries print cannot disturb it. Results and errors travel the
same way. The worker imports the isolating patch first: nothing else has touched transformers in its process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from luthier.core.errors import ExitCode, LuthierError
from luthier.core.extensions import RunEvent
from luthier.core.frozen import freeze, thaw
from luthier.core.plan import Plan


class WorkerError(LuthierError):
    """An error that happened in the worker; keeps the exit code it had there."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run_in_worker(
    plan: Plan, *, observers: tuple[Any, ...], resume: bool, overwrite: bool, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Run the plan in a fresh interpreter and return its results; raises WorkerError with the worker's message."""
    with tempfile.TemporaryDirectory(prefix="luthier-") as folder:
        path = Path(folder) / "plan.json"
        path.write_text(plan.to_json(), encoding="utf-8")
        read_end, write_end = os.pipe()
        # -P: the folder the user stands in is no place to import from; a file called random.py there would be.
        words = [sys.executable, "-P", "-m", "luthier.worker", str(path), str(write_end)]
        words += ["--resume"] * resume + ["--overwrite"] * overwrite
        process = subprocess.Popen(words, pass_fds=(write_end,), start_new_session=True)  # noqa: S603  # our own interpreter
        os.close(write_end)
        watcher = threading.Thread(target=_pass_on_stop, args=(stop, process), daemon=True)
        watcher.start()
        try:
            with os.fdopen(read_end, encoding="utf-8") as pipe:
                result, error = _listen(pipe, observers)
            code = process.wait()
        except BaseException:
            # A second Ctrl-C: in a session of its own the worker would train on, with nobody to hear it.
            process.kill()
            process.wait()
            raise
    if error is not None:
        raise WorkerError(error, code)
    if result is None:
        raise WorkerError(f"the worker process ended with code {code} and no result", ExitCode.ENVIRONMENT)
    return result


def _pass_on_stop(stop: threading.Event | None, process: subprocess.Popen[bytes]) -> None:
    """The worker has its own session, so that a Ctrl-C reaches it once: from here, when the run should end."""
    while stop is not None and process.poll() is None:
        if stop.wait(0.2):
            process.send_signal(signal.SIGINT)
            return


def _listen(pipe: IO[str], observers: tuple[Any, ...]) -> tuple[dict[str, Any] | None, str | None]:
    from luthier.core.events import Broadcast

    broadcast = Broadcast(observers)
    result: dict[str, Any] | None = None
    error: str | None = None
    for line in pipe:
        message = json.loads(line)
        if "result" in message:
            result = message["result"]
        elif "error" in message:
            error = message["error"]
        else:
            broadcast(RunEvent(kind=message["kind"], message=message["message"], values=freeze(message["values"])))
    return result, error


def main(words: list[str]) -> int:
    """The worker's side: `PLAN.json FD [--resume] [--overwrite]`."""
    from luthier.core.contracts import ModelPatch
    from luthier.registry.catalog import discover

    path, descriptor, *flags = words
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    with os.fdopen(int(descriptor), "w", encoding="utf-8", buffering=1) as pipe:

        def send(message: dict[str, Any]) -> None:
            pipe.write(json.dumps(message, ensure_ascii=False) + "\n")

        def observe(event: RunEvent) -> None:
            send({"kind": event.kind, "message": event.message, "values": thaw(event.values)})

        try:
            plan = Plan.from_json(Path(path).read_text(encoding="utf-8"))
            catalog = discover()
            for step in plan.steps_in("patches"):
                patch = catalog.method("patches", step.method)
                if isinstance(patch, ModelPatch) and patch.isolate and patch.prepare is not None:
                    patch.prepare()
            from luthier.core.engine import execute
            from luthier.registry.environment import read_environment

            environment = read_environment()
            options = {"resume": "--resume" in flags, "overwrite": "--overwrite" in flags}
            send({"result": execute(plan, catalog, environment=environment, observers=(observe,), stop=stop, **options)})
        except LuthierError as error:
            send({"error": str(error)})
            return int(getattr(error, "code", error.exit_code))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
