"""Reading a configuration safely: names differ between families, and asking for one of them may raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read(source: Any, *names: str) -> Any:
    """The first of these attributes that is there and not None, else None.

    transformers raises a RuntimeError of its own for an attribute that differs between the layers of a model
    (`AmbiguousGlobalPerLayerAttributeError`); here that means: not known for the model as a whole.
    """
    for name in names:
        try:
            value = getattr(source, name, None)
        except (RuntimeError, NotImplementedError):
            continue
        if value is not None:
            return value
    return None


def integer(source: Any, *names: str) -> int | None:
    """As `read`, for whole numbers; a list of equal numbers counts as that number."""
    for name in names:
        value = read(source, name)
        if isinstance(value, list | tuple) and value and len(set(map(str, value))) == 1:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value  # -1 stands for "no limit" in some families
    return None


def text_config(config: PreTrainedConfig) -> Any:
    """The part of a configuration that describes the text decoder."""
    try:
        return config.get_text_config(decoder=True)
    except (ValueError, AttributeError, TypeError):  # several text parts, or a remote class without the method
        return config


def per_layer(config: Any, name: str, layer: int) -> Any:
    """The entry for one layer of a list-valued field (`layer_types`), or None."""
    values = read(config, name)
    if isinstance(values, list | tuple) and layer < len(values):
        return values[layer]
    return None


def rope_of(config: Any) -> tuple[str | None, float | None]:
    """Type and base frequency of the rotary position embeddings as configured; of full attention where layers differ."""
    parameters = read(config, "rope_parameters", "rope_scaling") or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    if nested:
        parameters = parameters.get("full_attention") or nested[0]
    kind = parameters.get("rope_type") or parameters.get("type")
    theta = parameters.get("rope_theta")
    if theta is None:
        theta = read(config, "rope_theta", "rotary_emb_base")
    return kind, float(theta) if isinstance(theta, int | float) else None
