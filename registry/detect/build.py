"""From any source to a model on the meta device: nothing is downloaded but the configuration, no weight is allocated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError, MissingEnvironmentError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Built:
    """A model to look at, and whether its class came from the repository instead of from transformers."""

    model: PreTrainedModel
    remote_code: bool


def meta_model(source: Any, *, trust_remote_code: bool, gguf_file: str | None, revision: str | None) -> Built:
    """The source as a model; a model that is already built is looked at as it is."""
    from torch import nn
    from transformers import PreTrainedConfig

    if isinstance(source, nn.Module):
        return Built(source, _is_remote(type(source)))
    if isinstance(source, PreTrainedConfig):
        return _from_config(source, where=source.name_or_path or source.model_type, trust_remote_code=trust_remote_code)
    if not isinstance(source, str | Path):
        raise TypeError(f"detect() takes a configuration, a model, a folder or a hub id, not {type(source).__name__}")
    config = read_config(source, trust_remote_code=trust_remote_code, gguf_file=gguf_file, revision=revision)
    return _from_config(config, where=str(source), trust_remote_code=trust_remote_code)


def read_config(
    source: str | Path, *, trust_remote_code: bool = False, gguf_file: str | None = None, revision: str | None = None
) -> PreTrainedConfig:
    """The configuration in a folder or of a hub id; raises ModelError or MissingEnvironmentError, naming the file."""
    from transformers import AutoConfig

    where = str(source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        where = str(folder / (gguf_file or "config.json"))
        _check_folder(folder, gguf_file, trust_remote_code)
    elif folder.is_file():
        raise ModelError(
            "this is a file, where a folder with a config.json was expected",
            where=where,
            fix="name the folder, with gguf_file for a GGUF checkpoint",
        )
    elif _looks_like_path(where):
        raise ModelError("there is no such folder", where=where, fix="check the path under `model`")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    options |= {key: value for key, value in (("gguf_file", gguf_file), ("revision", revision)) if value is not None}
    try:
        # A folder is always given as an absolute path: a relative one could be taken for a hub id.
        return AutoConfig.from_pretrained(str(folder.resolve()) if folder.is_dir() else where, **options)
    except Exception as error:  # every library in between raises types of its own
        raise _reading_failed(error, where, local=folder.is_dir(), trust_remote_code=trust_remote_code) from error


def _check_folder(folder: Path, gguf_file: str | None, trust_remote_code: bool) -> None:
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise ModelError("there is no such file", where=str(folder / gguf_file), fix="check the name of the GGUF file")
        return
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            "the folder has no config.json, so it holds no model",
            where=str(folder),
            fix="point `model` at the folder that save_pretrained wrote, or download the model again",
        )
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # invalid JSON, invalid UTF-8, unreadable
        raise ModelError(f"not valid JSON: {error}", where=str(path), fix="download or export the model again") from error
    if not isinstance(plain, dict):
        raise ModelError("a mapping was expected", where=str(path), fix="download or export the model again")
    _check_permission(plain, str(path), trust_remote_code)


def _check_permission(plain: dict[str, Any], where: str, trust_remote_code: bool) -> None:
    from transformers import CONFIG_MAPPING

    model_type = plain.get("model_type")
    if model_type in CONFIG_MAPPING:
        return
    if plain.get("auto_map"):
        if not trust_remote_code:
            raise _permission_needed(str(model_type), where)
        return
    if not model_type:
        raise ModelError(
            "`model_type` is missing, so it cannot be told which architecture this is",
            where=where,
            fix='add "model_type", for example "llama", or download the model again',
        )
    raise _unknown_type(str(model_type), where)


def _permission_needed(model_type: str, where: str) -> ModelError:
    return ModelError(
        f"model type {model_type!r} is not part of transformers; it brings Python code of its own, which was not run",
        where=where,
        fix="read that code, then allow it with `trust_remote_code: true` (on the command line --trust-remote-code)",
    )


def _unknown_type(model_type: str, where: str) -> ModelError:
    import transformers

    return ModelError(
        f"model type {model_type!r} is unknown to transformers {transformers.__version__}",
        where=where,
        fix="upgrade transformers, or check `model_type` in config.json",
    )


def _reading_failed(error: Exception, where: str, *, local: bool, trust_remote_code: bool) -> LuthierError:
    """Our error for one of transformers': by type and by the few words that tell its many OSErrors apart."""
    text = str(error)
    first = " ".join(text.split())[:300]
    if "trust_remote_code" in text and not trust_remote_code:
        return _permission_needed("of this repository", where)
    if "does not recognize this architecture" in text:
        return _unknown_type(text.split("`")[1] if "`" in text else "?", where)
    if isinstance(error, ImportError):
        return MissingEnvironmentError(f"the configuration needs a package: {first}", where=where, fix="install it")
    if local or "not a valid JSON" in text or not isinstance(error, OSError):
        return ModelError(
            f"the configuration cannot be read: {first}", where=where, fix="correct or re-download the configuration"
        )
    if "connect" in text or "offline" in text.lower() or "resolve" in text.lower():
        return MissingEnvironmentError(
            "the hub cannot be reached, and the model is not in its cache",
            where=where,
            fix="check the network and HF_HUB_OFFLINE, or give a local folder that holds the model",
        )
    return ModelError(
        f"there is no such folder, and no such model on the hub: {first}", where=where, fix="check the name under `model`"
    )


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or name.endswith("/")


def _from_config(config: PreTrainedConfig, *, where: str, trust_remote_code: bool) -> Built:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    auto_map = getattr(config, "auto_map", None) or {}
    remote = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    if remote and "AutoModelForCausalLM" not in auto_map:
        raise ModelError(
            f"model type {config.model_type!r} has no causal language model in transformers",
            where=where,
            fix="choose a model that continues text (its class is called ...ForCausalLM)",
        )
    if remote and not trust_remote_code:
        raise _permission_needed(config.model_type, where)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=remote and trust_remote_code)
    except ImportError as error:
        raise MissingEnvironmentError(
            f"the model class needs a package: {' '.join(str(error).split())[:300]}", where=where, fix="install it"
        ) from error
    except Exception as error:  # whatever a model's constructor makes of a configuration that contradicts itself
        raise ModelError(
            f"no model can be built from this configuration: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            where=where,
            fix="check config.json against the model's documentation",
        ) from error
    return Built(model, remote)


def _is_remote(cls: type) -> bool:
    return cls.__module__.startswith("transformers_modules")
