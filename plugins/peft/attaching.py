"""A tuner of PEFT on the model, in float32, on exactly the modules that were wanted."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import peft
import torch
from torch import nn

from luthier.core.contracts import NothingPatched
from luthier.core.errors import ModelError
from luthier.core.profile import ArchitectureProfile
from luthier.plugins._peft.layers import task_type, wrap
from luthier.plugins.peft.planning import prefix_shape, selected
from luthier.plugins.peft.skeleton import target_names, tuner_targets
from luthier.plugins.peft.tuners import TUNERS
from luthier.plugins.peft.typed import config_class

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.plugins.peft import PeftConfig

HALVES = (torch.bfloat16, torch.float16)


def attach_tuner(model: nn.Module, profile: ArchitectureProfile, config: PeftConfig) -> nn.Module:
    """The model wrapped by PEFT, base frozen, what trains in float32.

    Raises NothingPatched when a module of the profile is missing, ModelError where PEFT reads other sizes than the profile.
    """
    narrow = any(parameter.dtype in HALVES for parameter in model.parameters())
    if TUNERS[config.tuner].kind == "prompt":
        adapted = _put_before_rows(model, profile, config)
    else:
        targets = selected(profile, config).targets
        names = target_names(targets, {name for name, _ in model.named_modules()})
        options = config_class(config.tuner)(
            **config.options, **tuner_targets(config.tuner, names, targets), task_type=task_type(profile)
        )
        with warnings.catch_warnings():
            # It knows no model's own norm, and copies it all the same.
            warnings.filterwarnings("ignore", "Unsupported layer type .* encountered")
            adapted = wrap(model, options, [target.name for target in targets], method=f"peft: {config.tuner}")
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype in HALVES:
            parameter.data = parameter.data.float()
    if narrow:
        for module in adapted.modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                module.register_forward_hook(_as_it_came_in)
    return adapted


def fold(model: Any) -> nn.Module:
    """The base model with every update in its weight, and a score head that trained in its place.

    PEFT does so too, but for what is not one of a tuner's own layers: `ln_tuning` leaves the head in its wrapper.
    """
    merged: nn.Module = model.merge_and_unload()
    for name, module in list(merged.named_modules()):
        if isinstance(module, peft.utils.ModulesToSaveWrapper):
            owner, _, leaf = name.rpartition(".")
            setattr(merged.get_submodule(owner), leaf, module.modules_to_save["default"])
    return merged


def _as_it_came_in(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """A float32 update makes some of PEFT's layers give float32, which the bfloat16 layer after them does not take."""
    if not isinstance(output, torch.Tensor) or not isinstance(inputs[0], torch.Tensor):
        return output
    cast: Tensor = output.to(inputs[0].dtype)
    return cast


def _put_before_rows(model: Any, profile: ArchitectureProfile, config: PeftConfig) -> nn.Module:
    """Learned tokens, or learned keys and values, before every row."""
    options = config_class(config.tuner)(**config.options, task_type="CAUSAL_LM")
    if config.options.get("prompt_tuning_init") == "TEXT" and options.tokenizer_name_or_path is None:
        options.tokenizer_name_or_path = model.name_or_path
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted: Any = peft.get_peft_model(model, options)
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise NothingPatched(f"peft: {config.tuner} left no parameter to train")
    shape = prefix_shape(profile)
    if config.tuner == "prefix_tuning" and shape is not None:
        heads, size = shape
        if (options.num_attention_heads, options.token_dim) != (heads, heads * size):
            raise ModelError(
                f"PEFT reads {options.num_attention_heads} key-value heads of {options.token_dim} features together from "
                f"config.json, and the layers have {heads} of {heads * size}",
                where="adapter: peft",
                fix="remove num_key_value_heads from config.json where the model has no such thing, or take `prompt_tuning`",
            )
    return adapted
