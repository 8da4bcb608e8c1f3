"""Checkpoints that arrive quantised: what transformers and PEFT can do with each method, as a table.

Read in the sources of transformers 5.23 (`quantizers/`, `integrations/`) and peft 0.21.2 (`tuners/lora/`). A method is
trainable here when gradients reach the input of its layers *and* PEFT has a LoRA layer for them; where that is not so,
`untrainable` says why. `dequantize` is how the checkpoint becomes plain weights: "load" (transformers does it tensor by
tensor while it reads), "after" (the loaded layers are replaced), or "" (it cannot).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from luthier.core.frozen import FrozenDict, freeze
from luthier.core.profile import ArchitectureProfile, Quantization
from luthier.core.traits import Trait

_INFERENCE: Final = "transformers runs it for inference only"
_NO_LAYER: Final = "PEFT has no layer for weights stored like these"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What is known of one quantisation method.

    bits         of a stored weight; None where the checkpoint's own configuration says
    packages     PEP 508 requirements for loading it and putting LoRA on it
    cuda         whether it needs a CUDA device
    untrainable  why no adapter can train on it; empty where one can
    dora         whether PEFT can read the weight back, which DoRA needs for its norms
    dequantize   how it becomes plain weights
    dequantizers PEP 508 requirements for that
    """

    bits: float | None = None
    packages: tuple[str, ...] = ()
    cuda: bool = False
    untrainable: str = ""
    dora: bool = False
    dequantize: Literal["load", "after", ""] = ""
    dequantizers: tuple[str, ...] = ()


_BITSANDBYTES: Final = ("bitsandbytes>=0.49",)
_GPTQ: Final = ("gptqmodel>=7.0", "optimum>=1.24")

# By `quant_method`; bitsandbytes and torchao by what they store as well, which decides what they can do.
STORAGES: Final[dict[str, Storage]] = {
    "bitsandbytes_4bit": Storage(bits=4, packages=_BITSANDBYTES, dora=True, dequantize="after", dequantizers=_BITSANDBYTES),
    "bitsandbytes_8bit": Storage(bits=8, packages=_BITSANDBYTES, dequantize="after", dequantizers=_BITSANDBYTES),
    "gptq": Storage(packages=_GPTQ),
    "awq": Storage(bits=4, packages=_GPTQ),
    "aqlm": Storage(bits=2, packages=("aqlm>=1.0.2",)),
    "hqq": Storage(packages=("hqq>=0.2.1",), cuda=True, dora=True),
    "eetq": Storage(bits=8, packages=("kernels>=0.18.2", "eetq"), cuda=True),
    "quanto": Storage(packages=("optimum-quanto>=0.2",)),
    "torchao_int8": Storage(bits=8, packages=("torchao>=0.16",), dora=True),
    "torchao": Storage(packages=("torchao>=0.16",), untrainable="PEFT's LoRA on torchao takes int8 weights only"),
    "compressed-tensors": Storage(
        packages=("compressed-tensors>=0.15",), dequantize="load", dequantizers=("compressed-tensors>=0.15",)
    ),
    "fp8": Storage(bits=8, packages=("kernels>=0.18.2",), cuda=True, dequantize="load"),
    "mxfp8": Storage(bits=8, packages=("kernels>=0.18.2",), cuda=True, dequantize="load"),
    "fbgemm_fp8": Storage(bits=8, packages=("fbgemm-gpu",), cuda=True, untrainable=_INFERENCE),
    "mxfp4": Storage(bits=4, untrainable=_INFERENCE, dequantize="load"),
    "metal": Storage(untrainable=_INFERENCE, dequantize="load"),
    "nvfp4": Storage(bits=4, untrainable="transformers does not load checkpoints of it"),
    "higgs": Storage(
        bits=4,
        packages=("flute-kernel>=0.3",),
        cuda=True,
        untrainable=_INFERENCE,
        dequantize="after",
        dequantizers=("flute-kernel>=0.3", "fast-hadamard-transform"),
    ),
    "fp_quant": Storage(bits=4, cuda=True, untrainable="it trains its own full-precision weights only"),
    "fouroversix": Storage(bits=4, untrainable="it trains its own full-precision weights only"),
    "vptq": Storage(packages=("vptq>=0.0.4",), cuda=True, untrainable=_INFERENCE),
    "spqr": Storage(bits=3, packages=("spqr-quant",), cuda=True, untrainable=_INFERENCE),
    "quark": Storage(packages=("amd-quark",), untrainable=_INFERENCE),
    "auto-round": Storage(packages=("auto-round>=0.5",), untrainable=_INFERENCE),
    "bitnet": Storage(bits=2, untrainable=_INFERENCE),
    "sinq": Storage(packages=("sinq",), untrainable=_NO_LAYER),
    "gemma": Storage(untrainable=_INFERENCE),
}


def read_quantization(settings: Mapping[str, Any]) -> Quantization:
    """What a configuration's `quantization_config` says, with what the table knows about its method.

    A method that the table does not know is untrainable, and says so.
    """
    method = str(settings.get("quant_method") or ("bitsandbytes" if _by_bits(settings) else "unknown"))
    known = STORAGES.get(_key(method, settings))
    if known is None:
        known = Storage(untrainable="Luthier does not know this method")
    return Quantization(
        method=method,
        bits=known.bits if known.bits is not None else _bits(settings),
        packages=known.packages,
        cuda=known.cuda,
        untrainable=known.untrainable,
        dora=known.dora,
        dequantize=known.dequantize,
        dequantizers=known.dequantizers,
        settings=FrozenDict(freeze(dict(settings))),
    )


def traits_of(quantization: Quantization) -> frozenset[Trait]:
    """The traits of a model whose weights are stored so."""
    found = {"model.prequantized", "weights.quantized"}
    if quantization.bits in (4, 8):
        found.add(f"weights.quantized.{quantization.bits:g}bit")
    if not quantization.dora and quantization.bits != 8:  # DoRA minds 8 bits, however they are stored
        found.add("weights.no_dora")
    return frozenset(found)


def without_quantization(profile: ArchitectureProfile, dtype: str) -> ArchitectureProfile:
    """The profile of the same model with plain weights of `dtype`."""
    if profile.quantization is None:
        return dataclasses.replace(profile, dtype=dtype)
    traits = profile.traits - traits_of(profile.quantization)
    return dataclasses.replace(profile, dtype=dtype, prequantized=None, quantization=None, traits=traits)


def stored_bytes(profile: ArchitectureProfile) -> tuple[int, float]:
    """(how many weights are quantised, bytes each) for the memory forecast; an estimate, but for the bits exact.

    The linear projections of the decoder layers and the experts are quantised, with one 16-bit scale for each group.
    """
    quantization = profile.quantization
    if quantization is None or quantization.bits is None:
        return 0, 0.0
    roles = ("attn", "cross", "mlp", "experts", "mixer")
    groups = {group: None for role in roles for group in profile.groups(role)}
    numbers = sum(group.parameters * group.count for group in groups)
    size = _group_size(quantization.settings)
    return numbers, quantization.bits / 8 + (2 / size if size else 0.0)


def _key(method: str, settings: Mapping[str, Any]) -> str:
    if method == "bitsandbytes":
        return f"bitsandbytes_{_by_bits(settings) or 4}bit"
    kind = str(settings.get("quant_type", ""))
    if method == "torchao" and "Int8" in kind and "Int4" not in kind:  # Int8DynamicActivationInt4Weight is one of 4 bits
        return "torchao_int8"
    return method


def _by_bits(settings: Mapping[str, Any]) -> int:
    """The bits of bitsandbytes' own keys; 0 where they are absent."""
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return 8
    return 4 if settings.get("load_in_4bit") or settings.get("_load_in_4bit") else 0


def _bits(settings: Mapping[str, Any]) -> float | None:
    """Bits as the methods write them: `bits`, `nbits`, `weights: int4`, or the first group of compressed-tensors."""
    for key in ("bits", "nbits", "w_bit"):
        if isinstance(settings.get(key), int | float):
            return float(settings[key])
    inner = settings.get("quant_config") or settings.get("weights_quant_params")
    if isinstance(inner, Mapping):
        return _bits(inner.get("weight_quant_params", inner))
    words = settings.get("weights")
    if isinstance(words, str):
        digits = "".join(filter(str.isdigit, words))
        return float(digits) if digits else None
    if isinstance(words, Mapping) and isinstance(words.get("num_bits"), int | float):
        return float(words["num_bits"])
    groups = settings.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        first = next(iter(groups.values()))
        return _bits(first) if isinstance(first, Mapping) else None
    return None


def _group_size(settings: Mapping[str, Any]) -> int:
    for key in ("group_size", "q_group_size"):
        if isinstance(settings.get(key), int) and settings[key] > 0:
            return int(settings[key])
    return 64 if _by_bits(settings) == 4 else 0
