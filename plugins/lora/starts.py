"""Where training starts: A and B that already hold a part of the weight, of its quantisation error, or of its inputs.

    pissa   the leading singular directions of W                 (Meng et al. 2024, arXiv:2404.02948)
    olora   the first r columns of Q and rows of R of W = Q R    (Buyukakyuz 2024, arXiv:2406.01775)
    corda   the leading directions of W C, C = covariance of its inputs  (Yang et al. 2024, arXiv:2406.05223)
    loftq   the leading directions of W - Q, Q = quantised W     (Li et al. 2023, arXiv:2310.08659, algorithm 1 with T = 1)
    eva     A: the leading directions of the inputs; B zero      (Paischer et al. 2024, arXiv:2410.07170)

The first three take what A and B hold out of the base weight, W' = W - s B0 A0, so that the model starts as it was. A0 and
B0 are kept beside the layer: an adapter is saved as an update of W, s (B A - B0 A0), which is a plain LoRA of rank 2r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts import NothingPatched
from luthier.core.errors import ModelError
from luthier.core.saving import MODEL_INDEX, read_weights, weight_files
from luthier.plugins._peft.lora_layout import Update
from luthier.plugins._peft.low_rank import base_weight, each_linear

Factors = tuple[Tensor, Tensor]
START_A, START_B = "start_A", "start_B"


def leading(weight: Tensor, rank: int, iterations: int | None = None) -> Factors:
    """A (rank, in) and B (out, rank) with B A the best approximation of `weight` (out, in), each with half of its size.

    With `iterations`, by that many rounds of a randomised SVD (Halko et al. 2011, arXiv:0909.4061).
    """
    if iterations is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        left, values, transposed = torch.svd_lowrank(weight, q=rank, niter=iterations)
        right = transposed.T
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def leading_columns(weight: Tensor, rank: int) -> Factors:
    """A = the first rows of R and B = the first columns of Q, which are orthonormal, of `weight` = Q R."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


@torch.no_grad()  # type: ignore[untyped-decorator]
def start_from_weights(model: nn.Module, made: Sequence[Update], init: str, iterations: int | None) -> None:
    """PiSSA or OLoRA on every adapted linear layer."""
    for layer in each_linear(model, made).values():
        rank, scale = layer.r["default"], layer.scaling["default"]
        if init == "olora":
            factors = leading_columns(base_weight(layer), rank)
        else:
            factors = halved(leading(base_weight(layer), rank, iterations), scale)
        take_out(layer, factors)


def halved(factors: Factors, scale: float) -> Factors:
    """Factors of the same product divided by the scale that the update will be multiplied by."""
    return factors[0] / scale**0.5, factors[1] / scale**0.5


@torch.no_grad()  # type: ignore[untyped-decorator]
def start_from_factors(model: nn.Module, made: Sequence[Update], factors: Mapping[str, Factors]) -> None:
    """CorDA: A and B as given by module name, taken out of the weights."""
    for name, layer in each_linear(model, made).items():
        take_out(layer, halved(factors[name], layer.scaling["default"]))


@torch.no_grad()  # type: ignore[untyped-decorator]
def start_from_directions(model: nn.Module, made: Sequence[Update], directions: Mapping[str, Tensor]) -> None:
    """EVA: A as given by module name; B stays zero."""
    for name, layer in each_linear(model, made).items():
        layer.lora_A["default"].weight.copy_(directions[name])


@torch.no_grad()  # type: ignore[untyped-decorator]
def start_from_error(model: Any, made: Sequence[Update], iterations: int | None) -> int:
    """LoftQ on every adapted layer that is quantised; returns how many. The quantised weights stay as they are.

    Raises NothingPatched where none is, ModelError where the original weights cannot be read.
    """
    from peft.utils.integrations import get_bnb_param_type

    layers = {
        name: layer for name, layer in each_linear(model, made).items() if get_bnb_param_type(layer.get_base_layer().weight)
    }
    if not layers:
        raise NothingPatched(
            "lora: init loftq starts from the quantisation error, and none of the adapted layers is quantised"
        )
    originals = original_weights(model.get_base_model(), layers)
    for name, layer in layers.items():
        quantised = base_weight(layer)
        error = originals[name].to(quantised) - quantised
        a, b = halved(leading(error, layer.r["default"], iterations), layer.scaling["default"])
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
    return len(layers)


def original_weights(model: Any, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """(out, in) unquantised weights of these adapted layers by name, from the files the model was loaded from."""
    folder = _files_of(model)
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        stored = read_weights(path)
        for name, layer in layers.items():
            for key in (f"{name}.weight", f"{name.removeprefix(f'{model.base_model_prefix}.')}.weight"):
                if key in stored:
                    found.setdefault(name, stored[key].T if _was_conv1d(layer) else stored[key])
    lost = [name for name in layers if name not in found]
    if lost:
        raise ModelError(
            f"the weight files have no tensor {lost[0]}.weight to compare the quantised one with",
            where=str(folder),
            fix="take another init than loftq",
        )
    return found


def _was_conv1d(layer: Any) -> bool:
    """Whether the quantised layer stands for a Conv1D: the files have its weight as (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return getattr(layer.get_base_layer(), "source_cls", None) is Conv1D


def _files_of(model: Any) -> Path:
    place = Path(model.name_or_path)
    if place.is_dir():
        return place
    from transformers.utils.hub import cached_file

    for name in (MODEL_INDEX, "model.safetensors"):
        path = cached_file(model.name_or_path, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return Path(path).parent
    raise ModelError("init loftq needs the model's safetensors files", where=model.name_or_path, fix="take another init")


def take_out(layer: Any, factors: Factors) -> None:
    """Start the update at these factors, subtract it from the base weight, and remember them beside the layer."""
    a, b = (factor.contiguous() for factor in factors)
    layer.lora_A["default"].weight.copy_(a)
    layer.lora_B["default"].weight.copy_(b)
    add_to_base(layer, a, b, -layer.scaling["default"])
    # Not part of the state: what is saved contains them.
    layer.register_buffer(START_A, a.clone(), persistent=False)
    layer.register_buffer(START_B, b.clone(), persistent=False)


def add_to_base(layer: Any, a: Tensor, b: Tensor, scale: float) -> None:
    """W + scale B A in place of W, added in float32 (or wider) whatever W is stored in."""
    weight = layer.get_base_layer().weight
    product = scale * (b @ a)
    wide = weight.to(torch.promote_types(weight.dtype, product.dtype))
    weight.data = (wide + (product.T if layer.fan_in_fan_out else product)).to(weight.dtype)
