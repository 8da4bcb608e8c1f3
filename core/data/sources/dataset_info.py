"""Sources that name an entry of LLaMA-Factory's dataset_info.json, replaced by what the entry means.

Follows the file's description in LLaMA-Factory's data/README.md. Keys that the configuration sets beside `dataset:` win.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from luthier.core.config.schema import DataConfig, SourceConfig
from luthier.core.data.sources.entries import source_of
from luthier.core.data.sources.locate import place
from luthier.core.data.sources.permission import check_local
from luthier.core.errors import DataError
from luthier.core.rows import shown_type

FILE_NAME: Final = "dataset_info.json"


def resolve_sources(data: DataConfig, base: Path | None = None) -> DataConfig:
    """The same configuration with every `dataset:` replaced by path or hub, format, columns and whatever its entry says.

    Raises DataError naming file, entry and key for an entry that is missing or cannot be used.
    """
    held_out = data.eval if isinstance(data.eval, tuple) else ()
    if not any(source.dataset for source in (*data.train, *held_out)):
        return data
    path = _path(data, base)
    entries = _read(path)
    train = tuple(_resolved(source, path, entries) for source in data.train)
    data = dataclasses.replace(data, train=train)
    if held_out:
        data = dataclasses.replace(data, eval=tuple(_resolved(source, path, entries) for source in held_out))
    return data


def _path(data: DataConfig, base: Path | None) -> Path:
    if data.dataset_info is None:
        name = next(
            source.dataset for source in data.train + (data.eval if isinstance(data.eval, tuple) else ()) if source.dataset
        )
        raise DataError(
            f"the entry {name!r} is to be looked up, and no file is named",
            where="data.dataset_info",
            fix=f"set it to a {FILE_NAME} or its folder",
        )
    path = Path(place(data.dataset_info, base))
    if path.is_dir():
        path = path / FILE_NAME
    check_local(path)
    if not path.is_file():
        where = " or beside the configuration file" if base is not None else ""
        raise DataError("there is no such file", where=str(path), fix=f"it was looked for in the current folder{where}")
    return path


def _read(path: Path) -> Mapping[str, Any]:
    fix = 'it is one object with an entry for each data set: {"name": {"file_name": "rows.json"}}'
    try:
        entries = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise DataError(f"bad JSON: {error.msg} (column {error.colno})", where=where, fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"bad JSON: {error}", where=str(path), fix=fix) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), fix="check the file") from error
    if not isinstance(entries, Mapping):
        raise DataError(f"is {shown_type(entries)}, not an object", where=str(path), fix=fix)
    return entries


def _resolved(source: SourceConfig, path: Path, entries: Mapping[str, Any]) -> SourceConfig:
    name = source.dataset
    if name is None:
        return source
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(entries)[:20]) or 'none'}"
        raise DataError(f"there is no entry {name!r}", where=str(path), fix=fix)
    return _with_own(source, source_of(path, name, entries[name]))


def _with_own(source: SourceConfig, entry: SourceConfig) -> SourceConfig:
    """The entry's source with what the configuration says beside `dataset:`."""
    own = {
        field.name: value
        for field in dataclasses.fields(SourceConfig)
        if field.name != "dataset" and (value := getattr(source, field.name)) != field.default
    }
    if "format" in own:
        own.setdefault("columns", source.columns)  # the entry's are columns of another format
    return dataclasses.replace(entry, **own)
