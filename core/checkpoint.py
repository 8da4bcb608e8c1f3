"""The state of a run as tensors and JSON, never pickle: optimizer, schedule, random generators, progress.

    optimizer.safetensors  optimizer.json    tensors by key path; everything else, with its types
    scheduler.json  progress.json            numbers
    rng.safetensors  rng.json                Python, NumPy, torch on CPU and CUDA

What is loaded equals what was saved bit for bit, so that a resumed run continues as if nothing had happened. Loading a
pickle runs whatever code it holds (CVE-2025-46567, CVE-2025-53002); these files cannot.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

# JSON has no tuples, no non-text keys, no NaN and no tensors: each is an object with this one key beside its kind.
KIND: Final = "$"
Plain = dict[str, Any]


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """`value` as JSON-shaped data; tensors go into `tensors` under their key path.

    Takes any nesting of dict, list, tuple, tensor, number, text, bool and None. Raises ModelError naming the key path of
    anything else.
    """
    import torch

    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {KIND: "float", "value": repr(float(value))}
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {KIND: "tensor", "name": path}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and KIND not in value:
            return {key: pack(item, tensors, f"{path}.{key}") for key, item in value.items()}
        items = [[pack(key, {}, f"{path} (key)"), pack(item, tensors, f"{path}.{key}")] for key, item in value.items()]
        return {KIND: "dict", "items": items}
    if type(value) is list:
        return [pack(item, tensors, f"{path}.{index}") for index, item in enumerate(value)]
    if type(value) is tuple:
        return {KIND: "tuple", "items": [pack(item, tensors, f"{path}.{index}") for index, item in enumerate(value)]}
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise ModelError(
        f"state of type {kind} cannot be written as tensors and JSON",
        where=path,
        fix="the optimizer has to keep its state in tensors, numbers, text, lists and dicts; report it to its author",
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    if kind is None:
        return {key: unpack(item, tensors) for key, item in value.items()}
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "float":
        return float(value["value"])
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in value["items"])
    if kind == "dict":
        return {unpack(key, tensors): unpack(item, tensors) for key, item in value["items"]}
    raise ValueError(f"unknown kind {kind!r}")


def write_packed(folder: Path, name: str, value: Any) -> None:
    """`value` into `name`.json, and its tensors, if any, into `name`.safetensors."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    plain = pack(value, tensors, name)
    if tensors:
        save_file(_separate(tensors), folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(plain, allow_nan=False), encoding="utf-8")


def read_packed(folder: Path, name: str) -> Any:
    """What `write_packed` wrote, tensors on the CPU. Raises ModelError naming the file that is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / f"{name}.json"
    stored = folder / f"{name}.safetensors"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        # Copied: what safetensors returns is the mapped file, and an optimizer would go on working in it.
        tensors = {key: tensor.clone() for key, tensor in load_file(stored).items()} if stored.exists() else {}
        return unpack(plain, tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        damaged = stored if isinstance(error, SafetensorError) else path
        raise ModelError(
            f"the state cannot be read: {error}", where=str(damaged), fix="resume from an earlier checkpoint, or start anew"
        ) from error


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none sharing memory with another: safetensors refuses anything else."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen and value.numel():
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        separate[name] = value
    return separate


# ---- random generators


def capture_rng() -> Plain:
    """The states of Python's, NumPy's and torch's generators (of CUDA: the device that this process trains on)."""
    import numpy as np
    import torch

    legacy: Any = np.random.get_state()
    _, keys, position, has_gauss, gauss = legacy
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
    }


def restore_rng(states: Plain) -> None:
    """Put the generators back to what `capture_rng` saw; a CUDA state is left out where there is no such device."""
    import numpy as np
    import torch

    random.setstate(states["python"])
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"][0])


# ---- the whole


def save_state(folder: Path, *, optimizer: Any, scheduler: Any, rng: Plain, progress: Mapping[str, Any]) -> None:
    """Write everything but the weights into `folder`, which exists. Raises ModelError naming a key that cannot be kept."""
    write_packed(folder, "optimizer", optimizer.state_dict())
    write_packed(folder, "scheduler", scheduler.state_dict())
    write_packed(folder, "rng", rng)
    write_packed(folder, "progress", dict(progress))


def load_state(folder: Path, *, optimizer: Any, scheduler: Any) -> None:
    """Put optimizer and schedule back, bit for bit. Raises ModelError when the files are missing, damaged or of other shape.

    The generators are restored separately (`restore_rng(read_packed(folder, "rng"))`), right before the first step:
    whatever happens in between may draw numbers.
    """
    saved = read_packed(folder, "optimizer")
    try:
        optimizer.load_state_dict(saved)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"the optimizer does not take this state: {error}",
            where=str(folder / "optimizer.json"),
            fix="resume with the adapter and optimizer that the checkpoint was made with",
        ) from error
    _keep_dtypes(optimizer, saved)
    scheduler.load_state_dict(read_packed(folder, "scheduler"))


def _keep_dtypes(optimizer: Any, saved: Plain) -> None:
    """Undo torch's cast of optimizer state to the dtype of its parameter: fp32 moments beside bf16 weights stay fp32."""
    numbers = [number for group in saved.get("param_groups", ()) for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in saved["state"] and parameter in optimizer.state:
            optimizer.state[parameter] = _as_saved(optimizer.state[parameter], saved["state"][number])


def _as_saved(loaded: Any, saved: Any) -> Any:
    import torch

    if isinstance(saved, torch.Tensor) and isinstance(loaded, torch.Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(saved, dict) and isinstance(loaded, dict):
        return {key: _as_saved(value, saved[key]) if key in saved else value for key, value in loaded.items()}
    if type(saved) is type(loaded) and isinstance(saved, list | tuple) and len(saved) == len(loaded):
        return type(saved)([_as_saved(*pair) for pair in zip(loaded, saved, strict=True)])
    return loaded
