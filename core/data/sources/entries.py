"""One entry of LLaMA-Factory's dataset_info.json as a source: where its rows are, and which format they have.

    formatting   ranking  kto_tag   becomes the format
    alpaca                          alpaca; text, where only the prompt column is named
    sharegpt                        sharegpt, with the tags as its options
    openai                          sharegpt, which knows messages as chat APIs write them
    any          yes                ranking
    any                   yes       unpaired

Every field is used or refused. Each error names the file, the entry and the key.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final, NoReturn

from luthier.core.config.schema import Choice, SourceConfig
from luthier.core.data.sources.files import is_url
from luthier.core.data.sources.permission import check_local
from luthier.core.data.sources.remote import PACKAGES
from luthier.core.errors import DataError
from luthier.core.frozen import FrozenDict
from luthier.core.rows import shown_type
from luthier.core.tagged import Tags

PLACES: Final = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
HUB_ONLY: Final = ("subset", "split", "folder")
TYPES: Final[dict[str, type]] = {
    **dict.fromkeys((*PLACES, *HUB_ONLY, "formatting"), str),
    "ranking": bool,
    "num_samples": int,
    "columns": dict,
    "tags": dict,
}
FORMATTINGS: Final = ("alpaca", "sharegpt", "openai")
MEDIA: Final = {"images": "images", "videos": "videos", "audios": "sounds"}
# What our formats call the columns; what is not here is not theirs.
COMMON: Final = {"system": "system", "tools": "tools"}
INSTRUCTION: Final = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", **COMMON}
CONVERSATION: Final = {"messages": "conversations", **COMMON}
RANKED: Final = {"chosen": "chosen", "rejected": "rejected"}
COLUMNS: Final = (*INSTRUCTION, "messages", *RANKED, "kto_tag", *MEDIA)
TAGS: Final = tuple(field.name for field in fields(Tags))
_TYPE_NAMES: Final = {str: "a string", bool: "true or false", int: "a number", dict: "an object"}


def source_of(path: Path, name: str, entry: Any) -> SourceConfig:
    """The source that the entry `name` of the file `path` stands for; raises DataError for what cannot be used."""
    return _Entry(path, name, entry).source()


class _Entry:
    def __init__(self, path: Path, name: str, entry: Any) -> None:
        self.path, self.name = path, name
        if not isinstance(entry, Mapping):
            self._refuse("", f"is {shown_type(entry)}, not an object", 'an entry is {"file_name": "rows.json", ...}')
        for key, value in entry.items():
            if key not in TYPES:
                self._unknown(key, key, TYPES)
            # null is what LLaMA-Factory takes for "not given".
            if value is not None and type(value) is not TYPES[key]:
                self._refuse(key, f"must be {_TYPE_NAMES[TYPES[key]]}, not {shown_type(value)}", "correct it")
        self.entry = {key: value for key, value in entry.items() if value is not None}
        self.columns = self._texts("columns", COLUMNS)
        self.tags = self._texts("tags", TAGS)

    def source(self) -> SourceConfig:
        format_, columns = self._format()
        values = self._place()
        samples = self.entry.get("num_samples")
        if samples is not None and samples < 1:
            self._refuse("num_samples", f"must be at least 1, not {samples}", "leave it out to take every row")
        return SourceConfig(**values, format=format_, columns=FrozenDict(columns), sample=samples)

    def _place(self) -> dict[str, Any]:
        hub = self.entry.get("hf_hub_url")
        if hub is not None:
            return self._hub(hub)
        for key in ("ms_hub_url", "om_hub_url"):
            if key in self.entry:
                where = "ModelScope" if key == "ms_hub_url" else "OpenMind"
                fix = "download it and name the file under file_name, or add hf_hub_url where it is on the Hugging Face hub"
                self._refuse(key, f"{self.entry[key]!r} is only on {where}, which is not read from here", fix)
        if "script_url" in self.entry:
            fix = "run it once, save its rows as JSON Lines or Parquet, and name that under file_name"
            self._refuse("script_url", "a loading script is a program, and is not run", fix)
        for key in HUB_ONLY:
            if key in self.entry and (key, self.entry[key]) != ("split", "train"):
                self._refuse(key, "belongs to a hub data set, and the rows of this entry are in files", "remove it")
        if "cloud_file_name" in self.entry:
            url = self.entry["cloud_file_name"]
            if not is_url(url):
                self._refuse("cloud_file_name", f"{url!r} is no URL", "write it as s3://bucket/rows.json")
            # file://, and what a chain such as zip://...::file:// ends in, would lead out of the folder.
            if url.partition("://")[0].lower() not in PACKAGES or "::" in url:
                self._refuse(
                    "cloud_file_name", f"{url!r} is no file of a cloud store or web server", f"use {', '.join(PACKAGES)}"
                )
            return {"path": url}
        if "file_name" not in self.entry:
            self._refuse("", "does not say where its rows are", f"it needs one of {', '.join(PLACES)}")
        return {"path": str(self._file(self.entry["file_name"]))}

    def _hub(self, hub: str) -> dict[str, Any]:
        folder, split = self.entry.get("folder"), self.entry.get("split", "train")
        if folder is None:
            return {"hub": hub, "subset": self.entry.get("subset"), "split": split}
        if ".." in PurePosixPath(folder).parts:
            self._refuse("folder", f"{folder!r} leads out of the data set", "name a folder in it")
        for key in ("subset", "split"):
            if key in self.entry and (key, split) != ("split", "train"):
                self._refuse(key, "cannot stand beside `folder`, whose files are all read", "name the folder that holds it")
        return {"path": f"hf://datasets/{hub}/{folder.strip('/')}"}

    def _file(self, name: str) -> Path:
        """A file or folder beside dataset_info.json: such files come from others, and must not lead out of their folder."""
        folder = self.path.parent
        fix = f"put the file into {folder}, or name it in the configuration: `path: ...`"
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root:
            self._refuse("file_name", f"{name!r} is an absolute path", fix)
        if ".." in PureWindowsPath(name).parts:
            self._refuse("file_name", f"{name!r} leads out of the folder", fix)
        found = folder / name
        inside = found.rglob("*") if found.is_dir() else ()
        for path in (found, *inside):
            if not path.resolve().is_relative_to(folder.resolve()):
                shown = str(path.relative_to(folder))
                self._refuse("file_name", f"{shown!r} is a link that leads out of the folder", fix)
        if not found.exists():
            near = difflib.get_close_matches(name, [child.name for child in folder.iterdir()], n=1)
            self._refuse("file_name", f"there is no {name!r} in {folder}", f"did you mean {near[0]!r}?" if near else fix)
        check_local(found)
        return found.absolute()

    def _format(self) -> tuple[Choice, dict[str, str]]:
        formatting = self.entry.get("formatting", "alpaca")
        if formatting not in FORMATTINGS:
            self._refuse("formatting", f"{formatting!r} is none of {', '.join(FORMATTINGS)}", "correct it")
        for column, what in MEDIA.items():
            if column in self.columns:
                here = f"the column {self.columns[column]!r} holds {what}, and this is for models of text alone"
                self._refuse(f"columns.{column}", here, "choose a data set of text")
        ranking, rated = bool(self.entry.get("ranking")), "kto_tag" in self.columns
        if ranking and rated:
            self._refuse("columns.kto_tag", "cannot stand beside `ranking: true`", "keep one of the two")
        if not ranking and "columns" in self.entry and not RANKED.keys().isdisjoint(self.columns):
            self._refuse("ranking", "is not set, and the columns name chosen or rejected answers", "set `ranking: true`")
        if formatting == "alpaca":
            if self.tags:
                self._refuse("tags", "name the roles of a conversation, and the rows are not", "set `formatting: sharegpt`")
            use, known = self._instructions(ranking, rated)
        else:
            use, known = ("ranking" if ranking else "unpaired" if rated else "sharegpt"), dict(CONVERSATION)
            if rated:
                known["messages"] = "messages"  # which that format looks for first
        known |= RANKED if ranking else {"kto_tag": "label"} if rated else {}
        for key in self.columns:
            if key not in known:
                why = f"is no column of {formatting} rows" + (" with `ranking`" if ranking else "")
                self._refuse(f"columns.{key}", why, f"theirs are {', '.join(known)}")
        columns = {known[key]: column for key, column in self.columns.items() if known[key] != column}
        return Choice(use=use, options=FrozenDict(self.tags)), columns

    def _instructions(self, ranking: bool, rated: bool) -> tuple[str, dict[str, str]]:
        if ranking:
            return "ranking", {key: ours for key, ours in INSTRUCTION.items() if key != "response"}
        if rated:
            return "unpaired", dict(INSTRUCTION)
        if "prompt" in self.columns and "response" not in self.columns:
            if len(self.columns) > 1:
                fix = "name the column of the answers; for plain text name the prompt column alone"
                self._refuse("columns.response", "is missing", fix)
            return "text", {"prompt": "text"}
        return "alpaca", {key: ours for key, ours in INSTRUCTION.items() if key != "tools"}

    def _texts(self, key: str, known: tuple[str, ...]) -> dict[str, str]:
        found = {}
        for name, value in self.entry.get(key, {}).items():
            if name not in known:
                self._unknown(f"{key}.{name}", name, known)
            if value is not None and not isinstance(value, str):
                self._refuse(f"{key}.{name}", f"must be a string, not {shown_type(value)}", "correct it")
            if value is not None:
                found[name] = value
        return found

    def _unknown(self, key: str, name: str, known: Any) -> NoReturn:
        near = difflib.get_close_matches(str(name), list(known), n=1)
        self._refuse(key, "is unknown", f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}")

    def _refuse(self, key: str, message: str, fix: str) -> NoReturn:
        where = f"{self.path}, {self.name}"
        raise DataError(message, where=f"{where}, {key}" if key else where, fix=fix)
