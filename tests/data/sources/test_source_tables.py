"""Parquet and Arrow files as pyarrow and `datasets` write them: rows, counts, what is skipped, and what is damaged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ExitCode, MissingEnvironmentError

pa = pytest.importorskip("pyarrow")

ROWS: list[dict[str, Any]] = [
    {"n": index, "messages": [{"role": "user", "content": f"ü {index}"}], "score": None if index % 2 else 0.5}
    for index in range(700)
]


def save(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """In the format of the name: three row groups or batches of 300, 300 and 100 rows."""
    import pyarrow.feather
    import pyarrow.ipc
    import pyarrow.parquet

    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=300)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, chunksize=300)
    else:
        new = pyarrow.ipc.new_stream if path.stem.startswith("stream") else pyarrow.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=300)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.feather"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_tables(tmp_path: Path, opened, name: str, streaming: bool) -> None:
    path = save(tmp_path / name)
    source = opened(path, streaming=streaming)
    read = list(source.rows())
    assert [row.value for row in read] == ROWS
    assert (read[0].where, read[-1].where) == (f"{path}, row 1", f"{path}, row 700")
    assert source.count() == (700 if not streaming or name == "a.parquet" else None)
    assert opened(path, rows=310).count() == 310
    for start in (0, 1, 255, 256, 299, 300, 301, 600, 699, 700, 800):
        part = list(source.rows(start))
        assert [row.value for row in part] == ROWS[start:]
        assert [row.line for row in part] == list(range(start + 1, 701))


def test_row_groups_that_are_skipped_are_not_read(tmp_path: Path, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    seen: list[list[int]] = []

    class Watched(pyarrow.parquet.ParquetFile):
        def iter_batches(self, *args: Any, row_groups: list[int], **keys: Any) -> Any:
            seen.append(row_groups)
            return super().iter_batches(*args, row_groups=row_groups, **keys)

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", Watched)
    first = next(opened(save(tmp_path / "a.parquet")).rows(601))
    assert (first.value["n"], seen) == (601, [[2]])


def test_files_without_rows(tmp_path: Path, fault) -> None:
    for name in ("a.parquet", "a.arrow", "stream.arrow"):
        import pyarrow as library

        path = tmp_path / name
        table = library.table({"a": library.array([], library.string())})
        if name == "a.parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, path)
        else:
            import pyarrow.ipc

            new = pyarrow.ipc.new_stream if name.startswith("stream") else pyarrow.ipc.new_file
            with library.OSFile(str(path), "wb") as sink, new(sink, table.schema):
                pass
        assert fault(path).message == "holds no rows"


def test_damaged_files(tmp_path: Path, written, fault) -> None:
    for name in ("a.parquet", "a.arrow", "stream.arrow"):
        whole = save(tmp_path / name).read_bytes()
        for content in (b"not a table at all", whole[: len(whole) // 2]):
            path = written(f"bad/{name}", content)
            error = fault(path)
            assert error.where == str(path)
            assert "or damaged" in error.message
    assert "Feather file of version 1" in fault(written("old.feather", b"FEA1....")).message
    assert fault(written("empty.arrow", b"")).message == "holds no rows"


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingEnvironmentError, match="the package pyarrow is not installed") as caught:
        list(opened(path).rows())
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert caught.value.fix == "pip install 'luthier[data]'"


def test_a_data_set_saved_by_datasets_is_a_folder(tmp_path: Path, opened) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS[:5]).save_to_disk(tmp_path / "saved")
    source = opened(tmp_path / "saved")
    assert [row.value for row in source.rows()] == ROWS[:5]
    assert source.name == f"{tmp_path / 'saved'} (1 file, 2 others left out)"
