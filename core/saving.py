"""What was trained, on the disk in the layouts that PEFT and transformers load, and back into a model.

An adapter may bring its own `save` and `load`; the defaults go by what the model is, and by what lies in the folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.core.contracts import Adapter

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
MODEL_WEIGHTS: Final = "model.safetensors"
MODEL_INDEX: Final = "model.safetensors.index.json"
CHANGED_BASE: Final = "base"


def save_trained(model: nn.Module, folder: Path, adapter: Adapter[Any]) -> None:
    """Write the trained weights and what is needed to load them into `folder`, which exists; the caller makes it atomic.

    PEFT models leave adapter_model.safetensors and adapter_config.json; other models model.safetensors (in shards from
    50 GB on), config.json and generation_config.json, unchanged.
    """
    from peft import PeftModel

    with quiet():
        if adapter.save is not None:
            adapter.save(model, folder)
        elif isinstance(model, PeftModel):
            save_peft(model, folder)
        elif hasattr(model, "save_pretrained"):
            model.save_pretrained(str(folder))
        else:
            raise ModelError(
                f"a {type(model).__name__} is neither a PEFT nor a transformers model",
                where=f"adapter: {adapter.name}",
                fix="its adapter has to bring `save` and `load`",
            )


def save_base_config(model: Any, folder: Path) -> None:
    """base/config.json: the configuration of the model that an adapter fits, where that is not the published one."""
    model.config.save_pretrained(str(folder / CHANGED_BASE))


def load_trained(model: nn.Module, folder: Path, adapter: Adapter[Any], *, trainable: bool) -> nn.Module:
    """The model with the weights of `folder` in it; parameters keep their dtype, device and `requires_grad`.

    An adapter that is attached already is filled in place, otherwise it is attached; `trainable` says whether it then
    trains. Raises ModelError naming a file that is missing, damaged, or of another model.
    """
    if not folder.is_dir():
        raise ModelError("there is no such folder", where=str(folder))
    with quiet():
        if adapter.load is not None:
            return adapter.load(model, folder, trainable)
        if (folder / ADAPTER_CONFIG).is_file():
            return load_peft(model, folder, trainable)
        _load_whole(model, folder)
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises ModelError naming the file when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the weights cannot be read: {error}",
            where=str(path),
            fix="fetch or write the file again; it is not a whole safetensors file",
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The files a whole model lies in: one, or the shards its index names. Raises ModelError when there are none."""
    index = folder / MODEL_INDEX
    if not index.is_file():
        return [folder / MODEL_WEIGHTS]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the index of the shards cannot be read: {error!r}", where=str(index)) from error
    return [folder / Path(name).name for name in sorted(names)]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports that transformers writes while it loads and saves: what matters, we say.

    Nor what libraries say to each other about names that will change.
    """
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def save_peft(model: Any, folder: Path) -> None:
    """A PEFT model's active adapter, as PEFT lays it out."""
    model.save_pretrained(
        str(folder), save_embedding_layers=_embedding_layers(model), selected_adapters=[model.active_adapter]
    )
    # PEFT writes a model card of its own; the run's card says what was trained.
    (folder / "README.md").unlink(missing_ok=True)


def load_peft(model: nn.Module, folder: Path, trainable: bool) -> nn.Module:
    """Fill the adapter of a PEFT model in place, or attach the one in `folder`. Raises ModelError where it does not fit."""
    from peft import PeftModel, set_peft_model_state_dict

    path = folder / ADAPTER_WEIGHTS
    weights = read_weights(path)
    if not isinstance(model, PeftModel):
        attached: nn.Module = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
        return attached
    name = model.active_adapter
    # PEFT itself only returns what did not fit; what is left over or left out would silently be another model.
    require_keys(set(weights), set(adapter_state(model)), path)
    try:
        set_peft_model_state_dict(model, weights, adapter_name=name)
    except (RuntimeError, KeyError) as error:
        raise misfit(path, str(error)) from error
    if not trainable:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    return model


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The tensors of a PEFT model's active adapter, under the names that its file has."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=_embedding_layers(model)
    )
    return state


def _embedding_layers(model: Any) -> bool:
    """Whether the embeddings belong to the adapter: decided from its configuration, where PEFT would ask the hub."""
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    targets = getattr(model.peft_config[model.active_adapter], "target_modules", None)
    if not targets or isinstance(targets, str):
        return False
    return any(target.rsplit(".", 1)[-1] in EMBEDDING_LAYER_NAMES for target in targets)


def _load_whole(model: nn.Module, folder: Path) -> None:
    """Copy a whole model's weights into `model`, every parameter exactly once."""
    files = weight_files(folder)
    own = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}  # one name for each tensor: a tied matrix is stored once
    for name, tensor in own.items():
        first.setdefault(id(tensor), name)
    required, stored = set(first.values()), set()
    for path in files:
        weights = read_weights(path)
        if not set(weights) <= set(own):
            return _load_converted(model, folder)
        mapped = {first[id(own[name])]: tensor for name, tensor in weights.items()}
        try:
            model.load_state_dict(mapped, strict=False)
        except RuntimeError as error:
            raise misfit(path, str(error)) from error
        stored |= set(mapped)
    return require_keys(stored, required, files[0])


def _load_converted(model: Any, folder: Path) -> None:
    """For models whose files name weights differently (transformers fuses experts while it loads): through a second copy."""
    try:
        # The widest: a head that is float32 among bfloat16 weights comes back as it was, and so do they.
        dtype = max((parameter.dtype for parameter in model.parameters()), key=lambda one: one.itemsize)
        fresh, report = type(model).from_pretrained(str(folder), dtype=dtype, output_loading_info=True)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise misfit(folder, str(error)) from error
    require_keys(set(report["unexpected_keys"]), set(report["missing_keys"]), folder)
    model.load_state_dict(fresh.state_dict())


def require_keys(stored: set[str], required: set[str], path: Path) -> None:
    """Raises ModelError where the names in a file are not those that the model needs."""
    missing, extra = sorted(required - stored), sorted(stored - required)
    if missing or extra:
        parts = [f"{len(missing)} weights are missing ({missing[0]}, ...)"] if missing else []
        parts += [f"{len(extra)} are of another model ({extra[0]}, ...)"] if extra else []
        raise misfit(path, " and ".join(parts))


def misfit(path: Path, reason: str) -> ModelError:
    """The error for weights of another model."""
    return ModelError(
        f"the weights do not fit this model: {reason}",
        where=str(path),
        fix="load them with the base model and the adapter options that they were trained with",
    )
