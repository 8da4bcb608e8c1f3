"""URLs through fsspec, with its filesystem in memory and with filesystems that fail in the ways real ones do."""

from __future__ import annotations

import gzip
import io
import json
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from luthier.core.errors import ExitCode, MissingEnvironmentError


@pytest.fixture
def stored() -> Iterator[Callable[[str, bytes | str], str]]:
    """`stored(name, content)` puts a file into memory:// and gives its URL; afterwards everything is gone."""
    system = fsspec.filesystem("memory")

    def store(name: str, content: bytes | str) -> str:
        system.pipe(f"/{name}", content.encode() if isinstance(content, str) else content)
        return f"memory://{name}"

    yield store
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_files_folders_and_globs(stored, values, opened) -> None:
    one = stored("data/a.jsonl", '{"n": 1}\n{"n": 2}')
    stored("data/sub/b.jsonl.gz", gzip.compress(b'{"n": 3}'))
    stored("data/README.md", "x")
    stored("data/.hidden.jsonl", '{"n": 4}')
    source = opened(one)
    assert [(row.where, row.value["n"]) for row in source.rows()] == [(f"{one}:1", 1), (f"{one}:2", 2)]
    assert [row.value["n"] for row in source.rows(1)] == [2]
    assert source.count() is None
    assert values("memory://data") == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert opened("memory://data").name == "memory://data (2 files, 1 other left out)"
    assert values("memory://data/*.jsonl") == [{"n": 1}, {"n": 2}]
    assert values("memory://data/**/*.gz") == [{"n": 3}]


def test_tables(stored, opened) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"n": list(range(10))}), sink)
    source = opened(stored("a.parquet", sink.getvalue()), streaming=True)
    assert [row.value["n"] for row in source.rows(7)] == [7, 8, 9]
    assert source.count() == 10


def test_faults_name_the_url(stored, fault) -> None:
    url = stored("bad.jsonl", '{"n": 1}\n{"n": ')
    assert fault(url).where == f"{url}:2"
    error = fault("memory://data/nothing.jsonl")
    assert (error.message, error.where) == ("there is no such file", "memory://data/nothing.jsonl")
    assert fault("memory://data/*.jsonl").message == "matches no file"
    cut = stored("cut.jsonl.gz", gzip.compress(b'{"n": 1}\n' * 100)[:-12])
    assert "cut off" in fault(cut).message


def test_a_server_that_does_not_answer_is_no_missing_file(fault) -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port, and connecting to it fails
        closed.bind(("127.0.0.1", 0))
        error = fault(f"http://127.0.0.1:{closed.getsockname()[1]}/rows.jsonl")
    assert "the server cannot be reached" in error.message
    assert "check the address and the network" in error.fix


class Failing(MemoryFileSystem):
    """A filesystem whose connection breaks at the place that `stage` names."""

    protocol = "failing"
    cachable = False
    stage = "open"

    def info(self, path: str, **keys: Any) -> dict[str, Any]:
        return {"name": path, "size": 10, "type": "file", "ETag": "abc"}

    def isdir(self, path: str) -> bool:
        return False

    def _open(self, path: str, mode: str = "rb", **keys: Any) -> Any:
        if self.stage == "open":
            raise RuntimeError(f"503 for {path}: come back later")

        class Broken(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell():
                    raise TimeoutError("the connection timed out")
                return super().read(9)

        return Broken(b'{"n": 1}\n{"n": 2}')


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Failing]]:
    fsspec.register_implementation("failing", Failing, clobber=True)
    yield Failing
    sys.modules["fsspec.registry"]._registry.pop("failing", None)


def test_errors_of_the_network_are_errors_of_the_data(failing, fault, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    error = fault("failing://host/a.jsonl")
    assert error.message.startswith("cannot be read: RuntimeError: 503")
    assert error.where == "failing://host/a.jsonl"
    monkeypatch.setattr(failing, "stage", "read")
    rows = opened("failing://host/a.jsonl").rows()
    assert next(rows).value == {"n": 1}
    with pytest.raises(Exception, match="TimeoutError: the connection timed out") as caught:
        next(rows)
    assert caught.value.exit_code == ExitCode.DATA


def test_what_a_server_says_of_the_content_is_its_fingerprint(failing, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opened("failing://host/a.jsonl").fingerprint()  # reading would fail
    # Web servers make an ETag of date and size, which two files of an archive may share.
    assert opened("failing://host/b.jsonl").fingerprint() != before
    monkeypatch.setattr(failing, "info", lambda self, path, **keys: {"name": path, "type": "file", "ETag": "def"})
    assert opened("failing://host/a.jsonl").fingerprint() != before
    monkeypatch.setattr(failing, "info", lambda self, path, **keys: {"name": path, "ETag": "abc", "sha256": "0123"})
    assert opened("failing://host/a.jsonl").fingerprint() == opened("failing://host/b.jsonl").fingerprint()


def test_without_such_words_the_content_is_read(stored, opened) -> None:
    one = opened(stored("a.jsonl", '{"n": 1}')).fingerprint()
    assert opened(stored("elsewhere/b.jsonl", '{"n": 1}')).fingerprint() == one
    assert opened(stored("a.jsonl", '{"n": 2}')).fingerprint() != one


def test_secrets_in_a_url_are_not_shown(failing, fault) -> None:
    for name in ("a.jsonl", "a.bin"):
        error = fault(f"failing://user:password@host/{name}?token=abc")
        assert error.where == f"failing://host/{name}?..."
        assert "password" not in str(error)
        assert "token=abc" not in str(error)


def test_a_missing_package_is_named(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(MissingEnvironmentError, match="s3:// cannot be read: Install s3fs") as caught:
        opened("s3://bucket/a.jsonl")
    assert (caught.value.exit_code, caught.value.fix) == (ExitCode.ENVIRONMENT, "pip install s3fs")


def test_an_unknown_protocol(fault) -> None:
    error = fault("ftpx://host/a.jsonl")
    assert "ftpx" in error.message
    assert "https" in error.fix


def test_the_name_below_the_query_tells_the_type(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Web(MemoryFileSystem):
        cachable = False

        def _open(self, path: str, mode: str = "rb", **keys: Any) -> Any:
            asked.append(path)
            return io.BytesIO(json.dumps([{"n": 1}]).encode())

    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (Web(), url))
    assert [row.value for row in opened("https://host/rows.json?v=2").rows()] == [{"n": 1}]
    assert asked == ["https://host/rows.json?v=2"]
