"""Rotary embeddings built anew from the model's configuration, so that the model is the one transformers would have built.

A rotary module is told by its structure: it holds inverse frequencies as a buffer (`inv_freq`, or one per layer type) and
the configuration it was made from. Where the configuration has parameters per layer type, those of full attention are
scaled: a sliding window does not grow with the context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from luthier.core.contracts import NothingPatched, Undo
from luthier.core.errors import LuthierError, ModelError
from luthier.core.saving import quiet

if TYPE_CHECKING:
    from luthier.plugins.rope_scaling import RopeScalingConfig

FREQUENCIES = "inv_freq"
ORIGINAL = "original_"
FULL = "full_attention"


def rescale(model: nn.Module, options: RopeScalingConfig, notice: Callable[[str], None]) -> Undo:
    """Edit the configuration and replace every rotary module; the callable that is returned takes both back.

    Raises NothingPatched where nothing rotates as its configuration says, ModelError where that configuration refuses the
    parameters; the model is then as it was.
    """
    config: Any = model.config.get_text_config()
    places = rotary_places(model)
    if not places:
        raise NothingPatched(f"rope_scaling: {type(model).__name__} holds no rotary embedding with inverse frequencies")
    if any(module.config is not config for _, _, module in places):
        raise NothingPatched(f"rope_scaling: the rotary embeddings of {type(model).__name__} follow several configurations")
    original = options.original_context or int(config.max_position_embeddings)
    edits = {
        "rope_parameters": scaled_parameters(config, options, original),
        "max_position_embeddings": options.context(original),
    }
    if vars(config).get("head_dim", 0) is None:
        # transformers' yarn and dynamic read it, and take null for a number (5.23).
        edits["head_dim"] = config.hidden_size // config.num_attention_heads
    before = {key: getattr(config, key) for key in edits}

    def undo() -> None:
        for key, value in before.items():
            setattr(config, key, value)
        for parent, name, module in places:
            setattr(parent, name, module)

    try:
        with quiet():
            for key, value in edits.items():
                setattr(config, key, value)
            require_taken(config)
            for parent, name, module in places:
                setattr(parent, name, rebuilt(module, config))
    except LuthierError:
        undo()
        raise
    except Exception as error:
        undo()
        reason = str(error).strip().splitlines()[-1]
        raise ModelError(f"transformers cannot build it with {edits}: {reason}", where=str(config.model_type)) from error
    reach = "stretched beyond" if options.type == "dynamic" else f"to {options.context(original)} tokens from"
    load = ", ".join(f"{key}={value}" for key, value in edits.items())
    notice(
        f"rope_scaling: {options.type} x {options.factor:g}, {reach} {original}; a whole model carries it in its "
        f"config.json, an adapter does not, and its base has to be loaded with {load}"
    )
    return undo


def rotary_places(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """(parent, name in it, rotary module) for each of them, in the model's order."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if hasattr(child, "config") and any(key.endswith(FREQUENCIES) for key, _ in child.named_buffers(recurse=False))
    ]


def scaled_parameters(config: Any, options: RopeScalingConfig, original: int) -> dict[str, Any]:
    """`rope_parameters` with the scaling in them; what is no matter of scaling (base frequency, rotated part) stays."""
    parameters: dict[str, Any] = copy.deepcopy(config.rope_parameters)
    nested = any(isinstance(value, dict) for value in parameters.values())
    if nested and not isinstance(parameters.get(FULL), dict):
        kinds = ", ".join(parameters)
        raise NothingPatched(f"rope_scaling: {config.model_type} sets its rope for {kinds}, and not for full attention")
    target = parameters[FULL] if nested else parameters
    kept = {key: target[key] for key in ("rope_theta", "partial_rotary_factor", "mrope_section") if key in target}
    target.clear()
    target.update(kept | options.parameters(original))
    return parameters


def require_taken(config: Any) -> None:
    """Raises ModelError where this configuration, written and read as config.json, would have other rope parameters."""
    again = type(config).from_dict(config.to_dict())
    if again.rope_parameters != config.rope_parameters:
        reason = f"its configuration reads this scaling as {again.rope_parameters}"
        raise ModelError(reason, where=str(config.model_type), fix="take another type")


def rebuilt(module: Any, config: Any) -> nn.Module:
    """A rotary module of the same class on the same device."""
    device = next(module.buffers()).device
    fresh: nn.Module = type(module)(config).to(device)
    if "dynamic" in str(getattr(fresh, "rope_type", "")):
        fresh.register_forward_pre_hook(forget_growth)
    return fresh.train(module.training)


def forget_growth(module: Any, arguments: object) -> None:
    """Before each batch, the frequencies of the original context again.

    transformers keeps those of the longest batch so far, so that a result would depend on the batches before it, and a
    resumed run would go on differently.
    """
    for name, _ in list(module.named_buffers(recurse=False)):
        if not name.endswith(FREQUENCIES) or ORIGINAL in name:
            continue
        prefix = name.removesuffix(FREQUENCIES)
        # Under the same name, so that a buffer stays a buffer.
        setattr(module, name, getattr(module, f"{prefix}{ORIGINAL}{FREQUENCIES}").to(getattr(module, name).device))
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
