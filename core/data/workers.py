"""Several processes that tokenise, with the result of one: batches go out as they are read and come back in their order.

    this process:  read rows -> batches ----> worker 1: convert, encode ----> chunks, in order -> the store
                                        `---> worker 2: ...            --'

The workers are fresh interpreters (worker.py) that talk over a socket each, and not forks: a fork of a process with torch's
threads may hang. A script that calls `luthier.train` needs no `if __name__ == "__main__"`, which multiprocessing would ask
for, and the end of this process, however it comes, closes the sockets and so ends the workers.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final, Self, TypeVar

from luthier.core.errors import LuthierError

T = TypeVar("T")
# Starting a process costs about as much as tokenising some thousand rows.
ROWS_PER_WORKER: Final = 2_000
_HELD: Final = 2
_AHEAD: Final = 4
# Standard output belongs to the verb that runs.
_STDERR: Final = 2
_QUIET: Final = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def worker_count(wanted: int, rows: int | None) -> int:
    """How many processes tokenise: as many as wanted (0: the cores), but no more than `rows` keep busy; None is unknown."""
    most = wanted or usable_cores()
    return most if rows is None else max(1, min(most, rows // ROWS_PER_WORKER))


def spread(rows: Iterator[T], wanted: int, total: int | None) -> tuple[Iterator[T], int]:
    """The rows, and how many processes tokenise them; where their number is not known, the first ones are read to see."""
    count = worker_count(wanted, total)
    if total is not None or count == 1:
        return rows, count
    first = list(islice(rows, ROWS_PER_WORKER))
    return chain(first, rows), count if len(first) == ROWS_PER_WORKER else 1


def packed(value: Any) -> bytes | None:
    """What another process can make the value of again; None where it cannot, as with a lambda.

    Functions and classes go by name. One of the user's script is in `__main__`, which is another module there.
    """
    try:
        return bytes(ForkingPickler.dumps(value))
    except Exception:
        # Whatever a third party's object raises when it is asked for its state, it means that it has none to give.
        return None


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    held: list[int] = field(default_factory=list)


class WorkerPool:
    """Processes that are started when a `run` needs them, and ended by `close`, or at the end of a `with` block."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, setup: bytes, batches: Iterable[Any], count: int) -> Iterator[Any]:
        """The results of `count` processes for the batches, in their order; `setup` is a packed callable that takes one.

        An error there is raised here, as it is, once the results before it have been given; so is an error of `batches`.
        Raises LuthierError where a process dies. After an error the pool is of no more use.
        """
        while len(self._workers) < count:
            self._workers.append(_start())
        workers = self._workers[:count]
        for worker in workers:
            self._send(worker, setup)
        results: dict[int, Any] = {}
        reader = iter(batches)
        sent = given = 0
        failure: Exception | None = None
        open_end = True
        while open_end or given < sent:
            while open_end and sent - given < _AHEAD * count:
                worker = min(workers, key=lambda one: len(one.held))
                if len(worker.held) >= _HELD:
                    break
                try:
                    batch = next(reader)
                except StopIteration:
                    open_end = False
                except Exception as error:
                    # The batches before it are finished first, so that an error in one of those is the one raised.
                    failure, open_end = error, False
                else:
                    self._send(worker, ForkingPickler.dumps(batch))
                    worker.held.append(sent)
                    sent += 1
            if given < sent and given not in results:
                self._receive(results)
            while given in results:
                yield _unpacked(results.pop(given))
                given += 1
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for worker in self._workers:
            worker.process.kill()
            worker.connection.close()
        for worker in self._workers:
            worker.process.wait()
        self._workers = []

    def _send(self, worker: _Worker, data: Any) -> None:
        try:
            worker.connection.send_bytes(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise _died(worker) from error

    def _receive(self, results: dict[int, Any]) -> None:
        ready = wait([worker.connection for worker in self._workers if worker.held])
        for worker in self._workers:
            if worker.connection in ready:
                try:
                    results[worker.held[0]] = worker.connection.recv_bytes()
                except (EOFError, OSError) as error:
                    raise _died(worker) from error
                worker.held.pop(0)


def _start() -> _Worker:
    ours, theirs = socket.socketpair()
    with theirs:
        # -P: the folder the user stands in is no place to import from; sys.path goes over the socket.
        words = [sys.executable, "-P", "-m", "luthier.core.data.worker", str(theirs.fileno())]
        process = subprocess.Popen(  # noqa: S603  # our own interpreter
            words, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=_STDERR, env=os.environ | _QUIET
        )
    connection = Connection(ours.detach())
    with suppress(BrokenPipeError, ConnectionResetError):  # told by the first message that is sent
        connection.send(sys.path)
    return _Worker(process, connection)


def _unpacked(data: bytes) -> Any:
    """A result; raises the error that stands in its place."""
    result = ForkingPickler.loads(data)
    if isinstance(result, Failure):
        raise result.error()
    return result


@dataclass(frozen=True)
class Failure:
    """An error on its way to another process: a LuthierError by its class and content, any other by its traceback."""

    kind: type[LuthierError] | None
    content: dict[str, Any]
    text: str

    @classmethod
    def of(cls, error: Exception, traceback: str) -> Failure:
        if isinstance(error, LuthierError):
            return cls(type(error), dict(vars(error)), str(error.args[0]))
        return cls(None, {}, traceback)

    def error(self) -> Exception:
        if self.kind is None:
            return RuntimeError(f"a process that tokenises failed:\n{self.text}")
        # By its content: the class may take other arguments than its message.
        made = self.kind.__new__(self.kind, self.text)
        vars(made).update(self.content)
        return made


def _died(worker: _Worker) -> LuthierError:
    code = worker.process.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return LuthierError(
        f"a process that tokenises {how}",
        where="data.workers",
        fix="where the memory ran out, take fewer: data.workers=1 tokenises in one process",
    )
