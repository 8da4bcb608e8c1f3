"""Loading weights that are stored quantised, so that adapters can train on them.

A method asks for them in its load options as plain data ({"quant_method": "bitsandbytes", "load_in_4bit": True, ...}),
which a plan can hold; here it becomes transformers' own object. What comes back is made fit for training: see `settle`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from luthier.core.plan import Plan, Precision


def quantized_options(options: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Load options with the quantisation as transformers takes it, and everything on the plan's device.

    Without a device map transformers would put quantised weights on the first GPU, whatever the plan says.
    """
    wanted = options.get("quantization_config")
    if wanted is None and plan.profile.quantization is None:
        return dict(options)
    changed = {"device_map": {"": plan.device}} | dict(options)
    if isinstance(wanted, Mapping):
        from transformers.quantizers.auto import AutoQuantizationConfig

        changed["quantization_config"] = AutoQuantizationConfig.from_dict(dict(wanted))
    return changed


def settle(model: nn.Module, precision: Precision) -> None:
    """Makes bitsandbytes' 4-bit layers of a loaded model compute in the run's format, and train rightly after evaluation.

    Left alone they compute in the format that the checkpoint or a default names (float32), or in that of the first input
    they see. On a CPU with AVX512-BF16 they repack their weights at the first forward in evaluation mode, and later
    training steps take that path, which has no backward: no gradient reaches the layers below, without an error.
    """
    import torch

    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if hasattr(module, "compute_type_is_set"):
            set_compute_dtype(module, getattr(torch, precision.compute))


def cast_plain_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts what a quantised checkpoint holds beside its quantised weights: embeddings, norms, head, biases.

    transformers 5.23 casts some of them to the dtype asked for and leaves others as they were stored, so that a model would
    multiply bfloat16 with float32. A module with anything packed in it (codes, scales) is left alone, but for its bias.
    """
    import torch
    from torch import nn

    plain = (torch.float32, torch.bfloat16, torch.float16)
    for module in model.modules():
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        packed = any(
            tensor.dtype not in plain or type(tensor) not in (nn.Parameter, torch.Tensor) for tensor in own.values()
        )
        for name, parameter in module.named_parameters(recurse=False):
            if type(parameter) is nn.Parameter and parameter.dtype in plain and (not packed or name == "bias"):
                parameter.data = parameter.data.to(dtype)


def set_compute_dtype(module: Any, dtype: torch.dtype) -> None:
    """The format in which a 4-bit layer multiplies; without the second line its first input would decide anew."""
    module.compute_dtype = dtype
    module.compute_type_is_set = True


def count_parameters(parameter: Any) -> int:
    """The numbers a parameter stands for: two of 4 bits share a byte, and then the tensor has half as many elements."""
    state = getattr(parameter, "quant_state", None)
    shape = getattr(state, "shape", None) if state is not None else None
    return math.prod(shape) if shape is not None else int(parameter.numel())


@contextmanager
def without_repeated_configuration() -> Iterator[None]:
    """Without transformers' remark that a configuration was given for a checkpoint that has one: that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You passed `quantization_config` or equivalent parameters", UserWarning)
        yield
