"""PEFT's LoRA on the wanted modules; then where it starts, and what it stands on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from luthier.core.context import BuildContext
from luthier.core.profile import ArchitectureProfile
from luthier.core.saving import ADAPTER_WEIGHTS, read_weights, require_keys
from luthier.plugins._peft.lora_layout import planned_updates
from luthier.plugins._peft.low_rank import adapt, lora_layers
from luthier.plugins.lora import starts

if TYPE_CHECKING:
    from luthier.plugins.lora import LoraConfig


def attach_lora(
    model: nn.Module, profile: ArchitectureProfile, config: LoraConfig, context: BuildContext | None = None
) -> nn.Module:
    """The model wrapped by PEFT, base frozen, updates in float32; raises NothingPatched when a module is missing."""
    made = planned_updates(profile, config)
    linear = {update.target.name: update.rank for update in made if not update.is_fused}
    # Before anything is wrapped: these two run the base model.
    if config.init == "eva":
        from luthier.plugins.lora.calibration import input_directions

        directions = input_directions(model, linear, config.init_batches, context)
    elif config.init == "corda":
        from luthier.plugins.lora.calibration import covariance_factors

        factors = covariance_factors(model, linear, config.init_batches, config.corda_method, context)
    init = "gaussian" if config.init == "gaussian" else True
    adapted = adapt(model, profile, config, context, method="lora", init=init)
    if config.init in ("pissa", "olora"):
        starts.start_from_weights(adapted, made, config.init, config.svd_iterations)
    elif config.init == "corda":
        starts.start_from_factors(adapted, made, factors)
    elif config.init == "eva":
        starts.start_from_directions(adapted, made, directions)
    elif config.init == "loftq":
        count = starts.start_from_error(adapted, made, config.svd_iterations)
        if context is not None and count < len(made):
            context.notice(f"lora: {len(made) - count} of {len(made)} adapted modules are not quantised: they start at zero")
    if config.stack_on:
        stack(adapted, config.stack_on)
    return adapted


def _put_below(model: Any, name: str, folder: Path) -> None:
    """One of them. The base class's `add_adapter`: that of a model with a score head would have each file bring one."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    config: Any = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    PeftModel.add_adapter(model, name, config)
    path = folder / ADAPTER_WEIGHTS
    weights = read_weights(path)
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    require_keys(set(weights), set(own), path)
    set_peft_model_state_dict(model, weights, adapter_name=name)


def stack(model: Any, folders: Sequence[str]) -> None:
    """Put saved adapters on the model, active and frozen, beside the one that trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    below = [f"below_{number}" for number in range(len(folders))]
    for name, folder in zip(below, folders, strict=True):
        _put_below(model, name, Path(folder).expanduser())
    model.base_model.set_adapter(["default", *below])
    for layer in lora_layers(model).values():
        layer.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
