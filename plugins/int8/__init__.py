"""`int8`: base weights in 8 bits with one scale a row, frozen, for adapters (Dettmers et al. 2022, arXiv:2208.07339)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import MemoryTerms, ModelPatch, Support, Undo
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.plugins._bitsandbytes import storage

if TYPE_CHECKING:
    from torch import nn

    from luthier.core.context import BuildContext


@dataclass(frozen=True, kw_only=True)
class Int8Config:
    """Options of `int8`."""

    threshold: float = option(
        6.0,
        "Features of the input with a value above this are multiplied unquantised; 0 quantises all of them. On the CPU it "
        "counts in evaluation only: while training, bitsandbytes leaves the input unquantised there.",
        ge=0,
    )
    skip: tuple[str, ...] = option((), storage.SKIP_DOC)


def matrix_bytes(shape: tuple[int, ...]) -> int:
    """One byte for each weight, and a float32 scale for each row."""
    return math.prod(shape) + 4 * shape[0]


def supports(profile: ArchitectureProfile, environment: Environment, config: Int8Config) -> Support:
    if environment.device == "mps":
        return Support.missing("bitsandbytes has no 8-bit layers for Apple's GPUs", "run it on the CPU or on a CUDA device")
    return storage.support(profile, config.skip)


def memory(profile: ArchitectureProfile, config: Int8Config) -> MemoryTerms:
    return storage.memory(profile, config.skip, matrix_bytes)


def load_options(profile: ArchitectureProfile, config: Int8Config) -> Mapping[str, object]:
    return storage.load_options(profile, config.skip, load_in_8bit=True, llm_int8_threshold=float(config.threshold))


def apply(model: nn.Module | None, profile: ArchitectureProfile, config: Int8Config, *, context: BuildContext) -> Undo:
    from luthier.plugins._bitsandbytes.layers import settle_int8

    assert model is not None
    return settle_int8(model, profile, config.skip, context)


@hookimpl
def luthier_model_patches() -> Iterable[ModelPatch[Int8Config]]:
    yield ModelPatch(
        name="int8",
        summary="Base weights in 8 bits with a scale for each row; outlying input features are multiplied unquantised.",
        config=Int8Config,
        provides=frozenset({"weights.quantized", "weights.quantized.8bit"}),
        conflicts=frozenset({"model.prequantized"}),
        claims=frozenset({"weights.storage"}),
        numerics="changes",
        packages=storage.PACKAGES,
        supports=supports,
        load_options=load_options,
        memory=memory,
        apply=apply,
        phase="loaded",
        reference="Dettmers et al. 2022, LLM.int8(): 8-bit Matrix Multiplication at Scale, arXiv:2208.07339",
    )
