"""nf4, fp4 and int8: to which values weights are rounded, and in which format they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.dequantize import dequantized_weight

from .conftest import BITS, FORMATS, SMALL, Loaded

# Dettmers et al. 2023, appendix E, where the values stand to 16 digits.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def nearest(weight: Any, values: Any) -> Any:
    """(out, in) float64: blocks of 64 in row order, each by its greatest absolute value, rounded to the nearest value."""
    blocks = weight.double().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    codes = (blocks / scale).unsqueeze(-1).sub(values).abs().argmin(-1)
    return (values[codes] * scale).reshape(weight.shape)


def original(folder_kind: str, tiny_folder: Callable[..., Path]) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(tiny_folder(folder_kind, **SMALL.get(folder_kind, {})) / "model.safetensors")


def test_nf4_weights_are_those_of_the_paper(quantised: Callable[..., Loaded], tiny_folder: Callable[..., Path]) -> None:
    """Equal but for weights that lie between two values to the last bit, of which there are none in 70,000."""
    plain = original("llama", tiny_folder)
    values = torch.tensor(NF4, dtype=torch.float64)
    for name, module in quantised("llama", "nf4", double_quant=False).layers.items():
        expected = nearest(plain[f"{name}.weight"], values)
        assert torch.allclose(dequantized_weight(module).double(), expected, atol=1e-7), name


def test_fp4_weights_are_those_of_the_format(quantised: Callable[..., Loaded], tiny_folder: Callable[..., Path]) -> None:
    """Sign, two bits of exponent, one of mantissa, scaled so that the greatest is 1: 0, 1/192, 1/6, 1/4, 1/3, ..., 1."""
    plain = original("llama", tiny_folder)
    positive = torch.tensor([0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1], dtype=torch.float64)
    values = torch.cat([-positive.flip(0), positive])
    for name, module in quantised("llama", "fp4", double_quant=False).layers.items():
        weight = plain[f"{name}.weight"]
        error = (dequantized_weight(module).double() - weight.double()).abs()
        best = (nearest(weight, values) - weight.double()).abs()
        scale = weight.abs().reshape(-1, 64).amax(1).repeat_interleave(64).reshape(weight.shape)
        # bitsandbytes rounds at thresholds of four digits: nowhere worse than the best by more than that.
        assert ((error - best) / scale).max() < 5e-4, name


def test_double_quantisation_moves_a_weight_by_less_than_its_scale_is_rounded(quantised: Callable[..., Loaded]) -> None:
    once, twice = (quantised("llama", "nf4", double_quant=double).layers for double in (False, True))
    for name in once:
        first, second = dequantized_weight(once[name]), dequantized_weight(twice[name])
        assert not torch.equal(first, second)
        scales = first.reshape(-1, 64).abs().amax(1)
        # 8 bits of dynamic exponent over the spread of the scales around their mean.
        allowed = (scales - scales.mean()).abs().max() * 0.05
        assert (first - second).abs().max() <= allowed, name


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_int8_weights_are_rounded_by_their_row(
    kind: str, quantised: Callable[..., Loaded], tiny_folder: Callable[..., Path]
) -> None:
    """Half a step of 1/127 of the row's greatest value, and float16's rounding before that."""
    plain = original(kind, tiny_folder)
    for name, module in quantised(kind, "int8").layers.items():
        weight = plain[f"{name}.weight"]
        weight = weight.T if kind == "gpt2" else weight
        found = dequantized_weight(module)
        assert found.shape == weight.shape
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((found - weight).abs() / step).max() < 0.5 + 127 * 2**-10
        assert module.weight.dtype == torch.int8


@pytest.mark.parametrize("use", BITS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_computes_with_the_weights_it_stores(use: str, precision: str, quantised: Callable[..., Loaded]) -> None:
    """Forward, and the gradient of the input, against float64 products with the dequantised weight."""
    module = quantised("gpt2", use, precision).layers["transformer.h.0.mlp.c_fc"]
    dtype = getattr(torch, FORMATS[precision][1])
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    slope = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    output = module(x)
    output.backward(slope)
    weight, bias = dequantized_weight(module).double(), module.bias.double()
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    expected = x.detach().double() @ weight.T + bias
    assert (output.double() - expected).abs().max() <= tolerance * expected.abs().max()
    wanted = slope.double() @ weight
    assert (x.grad.double() - wanted).abs().max() <= tolerance * wanted.abs().max()  # type: ignore[union-attr]


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "float32"), ("bf16", "bfloat16"), ("mixed", "bfloat16")])
@pytest.mark.parametrize("use", ["nf4", "fp4"])
def test_auto_computes_in_the_runs_format(use: str, precision: str, expected: str, quantised: Callable[..., Loaded]) -> None:
    loaded = quantised("llama", use, precision)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))  # float32 in: the input must not decide
    for module in loaded.layers.values():
        if module.in_features == 64:
            module(x)
        assert module.compute_dtype == getattr(torch, expected)
    norms = {parameter.dtype for name, parameter in loaded.model.named_parameters() if "norm" in name or "embed" in name}
    assert norms == {getattr(torch, FORMATS[precision][0])}


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_another_format_can_be_asked_for(asked: str, quantised: Callable[..., Loaded]) -> None:
    """Products in a narrow format come out representable in it; in float32 they do not."""
    loaded = quantised("llama", "nf4", "fp32", compute_dtype=asked)
    module = loaded.layers["model.layers.0.self_attn.q_proj"]
    out = module(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))
    assert out.dtype == torch.float32
    assert torch.equal(out, out.to(getattr(torch, asked)).float())
    assert torch.equal(out, out.bfloat16().float()) == (asked == "bfloat16")
    assert asked != "float32" or not torch.equal(out, out.half().float())


@pytest.mark.parametrize("stored", ["uint8", "bfloat16", "float16", "float32"])
def test_the_storage_type_changes_no_value(stored: str, quantised: Callable[..., Loaded]) -> None:
    loaded, usual = quantised("llama", "nf4", storage_dtype=stored), quantised("llama", "nf4")
    for name, module in loaded.layers.items():
        assert module.weight.dtype == getattr(torch, stored)
        assert torch.equal(dequantized_weight(module), dequantized_weight(usual.layers[name]))


def test_the_threshold_reaches_every_layer(quantised: Callable[..., Loaded]) -> None:
    for threshold in (0.0, 2.5):
        layers = quantised("llama", "int8", threshold=threshold).layers.values()
        assert {module.state.threshold for module in layers} == {threshold}
    module = quantised("llama", "int8", threshold=2.5).layers["model.layers.0.self_attn.q_proj"].eval()
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    x[1, 7] = 90.0  # an outlying feature: quantised with the rest, it would leave them a step of 90/127
    exact = x.double() @ dequantized_weight(module).double().T
    with_outlier = (module(x).double() - exact).abs().max()
    module.state.threshold = 0.0
    assert with_outlier < 0.1 * (module(x).double() - exact).abs().max()
