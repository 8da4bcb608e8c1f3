"""Fixtures of the source tests: files written, rows read, and the fault that reading them finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.config.schema import SourceConfig
from luthier.core.data.sources import RowSource, open_rows
from luthier.core.errors import DataError, ExitCode


@pytest.fixture(autouse=True)
def every_folder_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTHIER_DATA_FOLDERS", raising=False)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """`written(name, content)` writes a file, and the folders above it."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def opened() -> Callable[..., RowSource]:
    """`opened(path, **keys of a source)`."""

    def open_(
        path: Path | str | None = None, *, streaming: bool = False, base: Path | None = None, **keys: Any
    ) -> RowSource:
        return open_rows(SourceConfig(path=None if path is None else str(path), **keys), base, streaming=streaming)

    return open_


@pytest.fixture
def values(opened: Callable[..., RowSource]) -> Callable[..., list[dict[str, Any]]]:
    """The values of all rows."""
    return lambda path=None, start=0, **keys: [dict(row.value) for row in opened(path, **keys).rows(start)]


@pytest.fixture
def fault(opened: Callable[..., RowSource]) -> Callable[..., DataError]:
    """The error that opening and reading a source ends with: always one about data, and always with advice."""

    def find(path: Path | str | None = None, **keys: Any) -> DataError:
        with pytest.raises(DataError) as caught:
            list(opened(path, **keys).rows())
        assert caught.value.exit_code == ExitCode.DATA
        assert caught.value.where
        assert caught.value.fix
        return caught.value

    return find
