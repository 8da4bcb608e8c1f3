"""Two runs at once over the same data, and one that is killed while it tokenises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.config.schema import RunConfig
from luthier.core.data.cache import data_folder

Write = Callable[..., Path]
Config = Callable[..., RunConfig]
Chat = Callable[..., dict[str, Any]]

# What a run does: tokenise, and say what came of it. A format that waits stands for much data.
# Whoever runs the tests in the background of a shell hands down that Ctrl-C is ignored: here it is not.
SCRIPT = """
import json, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from luthier.core.catalog import Offer, Provider
from luthier.core.config.schema import Choice, DataConfig, ModelConfig, RunConfig, SourceConfig
from luthier.core.data import prepare
from luthier.core.testing.models import tiny_tokenizer
from luthier.plugins import messages
from dataclasses import replace

path, go, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
(own,) = messages.luthier_data_formats()

def convert(row, options=None):
    while row.get("wait") and not go.exists():
        time.sleep(0.02)
    return {"messages": row["messages"]}

offer = Offer(value=replace(own, name="slow", convert=convert), provider=Provider(plugin="slow"))
source = SourceConfig(path=str(path), format=Choice(use="slow"))
config = RunConfig(model=ModelConfig(name="x"), data=DataConfig(train=(source,), workers=workers))
def say(kind, what):
    print(json.dumps([kind, what]), flush=True)
got = prepare(
    config, {"slow": offer}, tiny_tokenizer(), kind="conversation",
    notice=lambda text: say("notice", text), progress=lambda source, done, total: say("rows", done),
)
say("done", [got.train.digest, got.report.sources[0].cached, got.report.kept])
"""


@pytest.fixture
def start(tmp_path: Path, jsonl: Write, chat: Chat) -> Callable[..., subprocess.Popen[str]]:
    """`start(workers=1)`: a run over 600 rows that stops at the 300th until `go` exists."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    rows = jsonl([chat(f"q {number}", "a") | ({"wait": True} if number == 300 else {}) for number in range(600)])

    def begin(workers: int = 1) -> subprocess.Popen[str]:
        words = [sys.executable, str(script), str(rows), str(tmp_path / "go"), str(workers)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


def heard(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise AssertionError(process.stderr.read())
    return json.loads(line)


def rest(process: subprocess.Popen[str]) -> list[Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_one_makes_it_and_the_other_waits(start: Any, tmp_path: Path) -> None:
    first = start()
    assert heard(first) == ["rows", 256]
    second = start()
    kind, text = heard(second)
    assert (kind, f"process {first.pid}" in text) == ("notice", True)
    assert text.startswith("waiting for a run that tokenises the same data")
    (tmp_path / "go").touch()
    one, two = rest(first)[-1], rest(second)
    assert one[0] == "done"
    assert one[1][1:] == [False, 600]
    assert two == [["done", [one[1][0], True, 600]]]
    assert len(list(data_folder().iterdir())) == 1


def test_the_other_takes_over_where_the_first_is_killed(start: Any, tmp_path: Path) -> None:
    first = start()
    assert heard(first) == ["rows", 256]
    second = start()
    assert heard(second)[0] == "notice"
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    (tmp_path / "go").touch()
    notice, *_, done = rest(second)
    assert notice == ["notice", f"tokenised data: took over the lock of process {first.pid}, which has ended"]
    assert done[1][1:] == [False, 600]
    names = [path.name for path in data_folder().iterdir()]
    assert len(names) == 1
    assert not names[0].startswith(".")


def test_ctrl_c_ends_the_workers_and_leaves_nothing(start: Any, tmp_path: Path, few_rows_each: None) -> None:
    """A run in several processes: its own limit of rows for a worker is as small as 600 rows allow."""
    script = tmp_path / "run.py"
    script.write_text("from luthier.core.data import workers\nworkers.ROWS_PER_WORKER = 100\n" + script.read_text())
    run = start(workers=2)
    deadline = time.monotonic() + 60
    while len(children(run.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    started = children(run.pid)
    assert len(started) == 2
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert not any(Path(f"/proc/{process}").exists() for process in started)
    assert list(data_folder().iterdir()) == []


def children(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == process and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_the_variable_that_the_runs_share(private_cache: Path) -> None:
    assert os.environ["LUTHIER_CACHE"] == str(private_cache)
