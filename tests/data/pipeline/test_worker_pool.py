"""Processes that tokenise: results in order, errors as they are, a dead process said, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from luthier.core.data import workers
from luthier.core.data.workers import WorkerPool, packed, usable_cores, worker_count
from luthier.core.errors import DataError, LuthierError

# A module as a third party has one, which only this process's sys.path knows.
SOURCE = """
import os, signal, sys, time
from luthier.core.errors import DataError

class OddError(DataError):
    def __init__(self, message, *, reason, **more):
        self.reason = reason
        super().__init__(message, **more)

def double(value):
    time.sleep(value % 3 / 100)
    return value * 2, os.getpid()

def fail_at(place, value):
    if value == place:
        raise OddError("bad row", reason="odd", where=f"file:{value}", fix="mend it")
    if value == place + 1:
        raise ZeroDivisionError("later")
    return value

def die_at(place, value):
    if value == place:
        os.kill(os.getpid(), signal.SIGKILL)
    return value

def environment(name):
    return os.environ.get(name), "torch" in sys.modules

def same(value):
    return value

def sleep(value):
    time.sleep(60)
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "odd_functions.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import odd_functions  # type: ignore[import-not-found]

    yield odd_functions
    del sys.modules["odd_functions"]


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool() as made:
        yield made


def setup(function: Any) -> bytes:
    data = packed(function)
    assert data is not None
    return data


def test_results_come_in_order_from_several_processes(pool: WorkerPool, odd: Any) -> None:
    results = list(pool.run(setup(odd.double), range(100), 3))
    assert [value for value, _ in results] == [2 * number for number in range(100)]
    processes = {process for _, process in results}
    assert len(processes) == 3
    assert os.getpid() not in processes
    # The same processes take other work, and fewer of them where fewer are asked for.
    again = list(pool.run(setup(odd.double), [1, 2, 3, 4], 1))
    assert {process for _, process in again} < processes
    assert list(pool.run(setup(odd.double), [], 3)) == []


def test_messages_larger_than_a_socket_holds(pool: WorkerPool, odd: Any) -> None:
    """Both sides write more than fits: neither may wait for the other to read."""
    texts = [b"y" * 4_000_000] * 12
    assert list(pool.run(setup(odd.same), texts, 2)) == texts


def test_an_error_arrives_as_it_is_and_in_its_turn(pool: WorkerPool, odd: Any) -> None:
    given = []
    with pytest.raises(odd.OddError, match="bad row") as caught:
        given.extend(pool.run(setup(partial(odd.fail_at, 7)), range(40), 3))
    assert given == list(range(7))
    error = caught.value
    assert (error.where, error.fix, error.reason) == ("file:7", "mend it", "odd")
    assert str(error) == "file:7: bad row\n  fix: mend it"


def test_a_defect_brings_its_traceback(pool: WorkerPool) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError") as caught:
        list(pool.run(setup(partial(divmod, 1)), [0], 2))
    assert "Traceback" in str(caught.value)


def test_an_error_of_the_reader_comes_after_the_rows_before_it(pool: WorkerPool, odd: Any) -> None:
    def rows() -> Iterator[int]:
        yield from range(5)
        raise DataError("bad JSON", where="file:6")

    given = []
    with pytest.raises(DataError, match="bad JSON"):
        given.extend(pool.run(setup(odd.double), rows(), 2))
    assert [value for value, _ in given] == [0, 2, 4, 6, 8]
    with WorkerPool() as other, pytest.raises(odd.OddError):
        list(other.run(setup(partial(odd.fail_at, 3)), rows(), 2))


def test_a_killed_process_is_said(pool: WorkerPool, odd: Any) -> None:
    with pytest.raises(LuthierError, match=r"a process that tokenises was killed by signal 9") as caught:
        list(pool.run(setup(partial(odd.die_at, 5)), range(1000), 2))
    assert caught.value.where == "data.workers"
    assert "data.workers=1" in caught.value.fix


def test_one_thread_each_and_no_torch(pool: WorkerPool, odd: Any) -> None:
    names = ["TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"]
    assert list(pool.run(setup(odd.environment), names, 2)) == [("false", False), ("1", False), ("1", False)]


def test_what_cannot_be_packed(odd: Any) -> None:
    assert packed(lambda row: row) is None
    assert packed(odd.double) is not None
    assert packed(open(os.devnull)) is None  # noqa: SIM115


def test_closing_ends_what_is_at_work(odd: Any) -> None:
    with WorkerPool() as pool:
        results = pool.run(setup(odd.sleep), [1, 2], 2)
        with pytest.raises(TimeoutError):
            interrupted(results)
        processes = [worker.process for worker in pool._workers]
        assert [process.poll() for process in processes] == [None, None]
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2


def interrupted(results: Iterator[Any]) -> None:
    """As Ctrl-C does it: an exception out of a signal handler, in the middle of waiting."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        next(results)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


SCRIPT = """
import sys, time
from luthier.core.data import workers
from luthier.core.data.workers import WorkerPool, packed
pool = WorkerPool()
results = pool.run(packed(time.sleep), [0.01, 0.01, 60, 60], 2)
next(results), next(results)
print(*(worker.process.pid for worker in pool._workers), flush=True)
next(results)
"""


def test_a_script_needs_no_main_guard_and_its_death_ends_the_workers(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    # They would sleep for a minute.
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("wanted", "rows", "count"), [(4, 100_000, 4), (4, 5_000, 2), (4, 3_999, 1), (4, 0, 1), (3, None, 3), (1, 10**9, 1)]
)
def test_no_more_processes_than_the_rows_keep_busy(wanted: int, rows: int | None, count: int) -> None:
    assert worker_count(wanted, rows) == count


def test_rows_of_unknown_number_are_counted_as_far_as_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ROWS_PER_WORKER", 5)
    for number, count in ((4, 1), (5, 3), (12, 3)):
        rows, found = workers.spread(iter(range(number)), 3, None)
        assert (list(rows), found) == (list(range(number)), count)
    rows, found = workers.spread(iter(range(12)), 3, 12)
    assert (next(rows), found) == (0, 2)


def test_all_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 7})
    assert worker_count(0, 10**9) == 3
