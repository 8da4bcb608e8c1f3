"""`fp4`: base weights in 4-bit floating point, frozen, for adapters to train on (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts import ModelPatch
from luthier.core.hookspecs import hookimpl
from luthier.plugins._bitsandbytes.four_bit import FourBitOptions, four_bit_patch


@dataclass(frozen=True, kw_only=True)
class Fp4Config(FourBitOptions):
    """Options of `fp4`."""


@hookimpl
def luthier_model_patches() -> Iterable[ModelPatch[Any]]:
    yield four_bit_patch(
        "fp4",
        Fp4Config,
        "Base weights in 4-bit floating point: one sign bit, two of exponent, one of mantissa.",
        "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314",
    )
