"""Quantised layers turned into plain ones: what folding an update into the weights needs, and training them whole.

Folding into 4 or 8 bits would round a small update away; after this it is folded into float32 or bfloat16 weights. What
comes out are the values that the quantised layers computed with, not those from before they were quantised.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FOUR_BIT: Final = "Params4bit"
EIGHT_BIT: Final = "Int8Params"


def dequantize_model(model: Any, dtype: torch.dtype) -> Any:
    """The model with every quantised linear layer replaced by a plain one of `dtype`, and all other parameters cast to it.

    Weights become (out_features, in_features) as nn.Linear has them, also where the model had transformers' Conv1D: those
    become Conv1D again, (in_features, out_features), so that what is saved is what the model's class loads. bitsandbytes'
    layers are replaced here, any other kind by transformers' `model.dequantize()`. Frozen stays frozen. A model without
    quantised layers is only cast. Raises ModelError where the kind of weights cannot be read back.
    """
    replaced = 0
    for name, module in list(model.named_modules()):
        if is_quantized_linear(module):
            model.set_submodule(name, plain_linear(module, dtype))
            replaced += 1
    if not replaced and getattr(model, "is_quantized", False):
        model = _by_transformers(model, dtype)
    forget_quantization(model)
    for parameter in model.parameters():  # but no buffer: rotary frequencies and the like are float32 on purpose
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def is_quantized_linear(module: Any) -> bool:
    """Whether this is a linear layer of bitsandbytes that holds a quantised weight."""
    return type(getattr(module, "weight", None)).__name__ in (FOUR_BIT, EIGHT_BIT) and hasattr(module, "in_features")


def dequantized_weight(module: Any) -> Tensor:
    """The weight (out_features, in_features) that a layer of bitsandbytes computes with, in float32.

    4 bits: code x absmax of its block (arXiv:2305.14314, section 3). 8 bits: code x absmax of its row / 127
    (arXiv:2208.07339, section 2.1).
    """
    import torch

    weight = module.weight
    if type(weight).__name__ == FOUR_BIT:
        from bitsandbytes.functional import dequantize_4bit

        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            raise ModelError(
                "a 4-bit layer was repacked for inference, and its weights are no longer exact",
                fix="load the model again, and dequantise it before it is evaluated",
            )
        # Read back in float32 whatever format was quantised: rounding to that one would be one rounding more.
        state = copy.copy(weight.quant_state)
        state.dtype = torch.float32
        found: Tensor = dequantize_4bit(weight.data, state)
        return found
    state = module.state
    # Before the first forward pass the row statistics hang on the weight, afterwards on the layer's state.
    rows = weight.SCB if getattr(weight, "SCB", None) is not None else state.SCB
    codes = state.CB if state.CB is not None else weight.data
    return codes.to(torch.float32) * (rows.to(torch.float32) / 127.0).unsqueeze(1)


def plain_linear(module: Any, dtype: torch.dtype) -> nn.Module:
    """The plain layer that stands for a quantised one: nn.Linear, or Conv1D where the model's class has that."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    weight = dequantized_weight(module).to(dtype)
    plain: Any
    if getattr(module, "source_cls", nn.Linear) is Conv1D:
        with torch.device("meta"):
            plain = Conv1D(module.out_features, module.in_features)
        weight = weight.T.contiguous()
    else:
        with torch.device("meta"):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.data.to(dtype), requires_grad=False)
    elif getattr(plain, "bias", None) is not None:
        plain.bias = nn.Parameter(torch.zeros(module.out_features, dtype=dtype, device=weight.device), requires_grad=False)
    return plain.train(module.training)


def forget_quantization(model: Any) -> None:
    """Takes off everything by which transformers, PEFT and accelerate tell a quantised model.

    That includes the conversions that read the packed weights: transformers would reverse them when it saves, and cannot.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [one for one in conversions if not _unpacks(one)]
    for holder, names in (
        (model, ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")),
        (model.config, ("quantization_config", "_is_quantized", "_pre_quantization_dtype")),
    ):
        for name in names:
            if name in vars(holder):
                delattr(holder, name)
    model.is_quantized = False


def _unpacks(conversion: Any) -> bool:
    operations = getattr(conversion, "operations", None) or ()
    return any(getattr(operation, "hf_quantizer", None) is not None and not _reverses(operation) for operation in operations)


def _reverses(operation: Any) -> bool:
    try:
        return operation.reverse_op is not None
    except NotImplementedError:
        return False


def _by_transformers(model: Any, dtype: torch.dtype) -> Any:
    try:
        return model.dequantize(dtype)
    except (NotImplementedError, AttributeError, ValueError) as error:
        method = getattr(getattr(model.config, "quantization_config", None), "quant_method", "this method")
        raise ModelError(
            f"weights quantised by {getattr(method, 'value', method)} cannot be turned into plain ones: {error}",
            fix="take a checkpoint that is not quantised",
        ) from error
