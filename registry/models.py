"""From what a configuration says under `model` to where the model lies: an alias, a folder, a .gguf file, or a hub id.

In this order, so that nothing is guessed: an alias by its name; a .gguf file by its ending; whatever exists on disk or is
written like a path; `organisation/name` on the hub.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Final

from luthier.core.caching import cache_folder
from luthier.core.errors import ModelError
from luthier.core.plan import ModelReference
from luthier.registry.aliases import ALIASES, alias_folder, materialize

__all__ = ["cache_folder", "resolve_model"]

# The hub's own rule for repository names: https://huggingface.co/docs/huggingface_hub, `validate_repo_id`.
HUB_ID: Final = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w][\w.-]*")
GGUF_MAGIC: Final = b"GGUF"


def resolve_model(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, fetch: bool = True
) -> ModelReference:
    """Where the model called `name` is; an alias is fetched and converted first unless `fetch` is off.

    Hub models are not fetched here: transformers does that, and keeps them in its own cache. Raises ModelError for a
    name that is no model, MissingEnvironmentError when an alias cannot be fetched.
    """
    name = name.strip()
    if name in ALIASES:
        _refuse_revision(name, revision, "an alias")
        folder = materialize(ALIASES[name]) if fetch else alias_folder(ALIASES[name])
        return ModelReference(name=name, path=str(folder), kind="alias", trust_remote_code=trust_remote_code)
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        return _gguf(name, path, revision, trust_remote_code)
    if path.is_dir():
        return _folder(name, path, revision, trust_remote_code)
    if path.is_file():
        raise ModelError(
            "this is a file, and no .gguf file", where=name, fix="name the folder that the model's config.json is in"
        )
    if _looks_like_path(name) or not HUB_ID.fullmatch(name):
        raise _missing(name, path)
    return ModelReference(name=name, path=name, kind="hub", revision=revision, trust_remote_code=trust_remote_code)


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~", ".\\", "..\\")) or name in (".", "..") or Path(name).is_absolute()


def _refuse_revision(name: str, revision: str | None, what: str) -> None:
    if revision is not None:
        fix = "remove `revision`, it is for models on the hub"
        raise ModelError(f"{what} has no revisions, so {revision!r} cannot be found", where=name, fix=fix)


def _folder(name: str, path: Path, revision: str | None, trust_remote_code: bool) -> ModelReference:
    _refuse_revision(name, revision, "a folder")
    config = path / "config.json"
    if not config.is_file():
        raise _no_config(name, path)
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"config.json cannot be read: {error}", where=str(config), fix="copy the model again") from error
    if not isinstance(content, dict) or not content.get("model_type"):
        raise ModelError(
            "config.json does not say which `model_type` this is", where=str(config), fix="copy the model again"
        )
    return ModelReference(name=name, path=str(path.resolve()), kind="folder", trust_remote_code=trust_remote_code)


def _no_config(name: str, path: Path) -> ModelError:
    """The message for a folder that is no model, with what it seems to be instead."""
    if (path / "adapter_config.json").is_file():
        message = "this folder holds an adapter (adapter_config.json), not a model"
        return ModelError(message, where=name, fix="name the model that the adapter was trained on")
    files = sorted(file.name for file in path.glob("*.gguf"))
    if files:
        return ModelError(
            "the folder has no config.json, but .gguf files", where=name, fix=f"name the file: {path / files[0]}"
        )
    inside = sorted(file.parent for file in path.glob("*/config.json"))
    fix = f"did you mean {inside[0]}?" if inside else "name the folder that transformers' save_pretrained wrote"
    return ModelError("the folder has no config.json, so it is no model folder", where=name, fix=fix)


def _gguf(name: str, path: Path, revision: str | None, trust_remote_code: bool) -> ModelReference:
    _refuse_revision(name, revision, "a .gguf file")
    if not path.is_file():
        raise _missing(name, path)
    with path.open("rb") as handle:
        if handle.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            fix = "fetch it again: a page or a pointer may have been saved in its place"
            raise ModelError("the file ends in .gguf but is none", where=name, fix=fix)
    place = path.resolve()
    return ModelReference(
        name=name, path=str(place.parent), kind="gguf", gguf_file=place.name, trust_remote_code=trust_remote_code
    )


def _missing(name: str, path: Path) -> ModelError:
    """The message for a model that is nowhere, with the nearest name among the aliases and beside where it should be."""
    what = "file" if name.lower().endswith(".gguf") else "folder"
    near = _nearest(path)
    if near:
        return ModelError(f"there is no such model {what}", where=name, fix=f"did you mean {near}?")
    if _looks_like_path(name) or "/" in name or what == "file":
        return ModelError(f"there is no such model {what}", where=name, fix=f"{_existing(path)} exists; look there")
    message = "this is neither a folder, nor a built-in alias, nor a hub id like organisation/name"
    return ModelError(message, where=name, fix=f"built-in aliases: {', '.join(ALIASES)}")


def _nearest(path: Path) -> str | None:
    try:
        beside = {
            str(path.parent / entry.name) for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf"
        }
    except OSError:
        beside = set()
    aliases = set(ALIASES) if path.parent == Path() else set()
    near = difflib.get_close_matches(str(path), sorted(beside | aliases), n=1, cutoff=0.6)
    return near[0] if near else None


def _existing(path: Path) -> Path:
    """The longest part of the path that is there."""
    return next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
