"""What `nf4` and `fp4` have in common: options, bytes and load options of bitsandbytes' 4-bit layers.

    weight   -> blocks of 64: one of 16 code values each (4 bits), times the block's greatest absolute value (absmax)
    absmax   -> float32; or, quantised once more, 8 bits with one float32 for each 256 of them, and one offset

Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.contracts import MemoryTerms, ModelPatch, Support, Undo
from luthier.core.environment import Environment
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.plugins._bitsandbytes import storage

if TYPE_CHECKING:
    from torch import nn

    from luthier.core.context import BuildContext

BLOCK: Final = 64
OUTER_BLOCK: Final = 256
CODE_BYTES: Final = 16 * 4
OUTER_CODE_BYTES: Final = 256 * 4
Kind = Literal["nf4", "fp4"]


@dataclass(frozen=True, kw_only=True)
class FourBitOptions:
    """Options of both 4-bit formats."""

    double_quant: bool = option(True, "Quantise the blocks' scales as well, to 8 bits: 0.37 bits less for each weight.")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Format of the matrix products, to which weights are read back; `auto` takes that of the run's precision."
    )
    storage_dtype: Literal["uint8", "bfloat16", "float16", "float32"] = option(
        "uint8", "Type of the tensor that holds the 4-bit codes: no other values, but what FSDP needs to shard them."
    )
    skip: tuple[str, ...] = option((), storage.SKIP_DOC)


def matrix_bytes(shape: tuple[int, ...], double_quant: bool) -> int:
    """Bytes of one quantised matrix: codes, scales, and the tables that bitsandbytes keeps with each."""
    numbers = math.prod(shape)
    blocks = math.ceil(numbers / BLOCK)
    if not double_quant:
        return math.ceil(numbers / 2) + 4 * blocks + CODE_BYTES
    outer = 4 * math.ceil(blocks / OUTER_BLOCK) + 4 + OUTER_CODE_BYTES
    return math.ceil(numbers / 2) + blocks + outer + CODE_BYTES


def supports(profile: ArchitectureProfile, environment: Environment, config: FourBitOptions) -> Support:
    if environment.device == "mps":
        return Support.missing("bitsandbytes has no 4-bit layers for Apple's GPUs", "run it on the CPU or on a CUDA device")
    return storage.support(profile, config.skip)


def memory(profile: ArchitectureProfile, config: FourBitOptions) -> MemoryTerms:
    return storage.memory(profile, config.skip, partial(matrix_bytes, double_quant=config.double_quant))


def load_options(kind: Kind, profile: ArchitectureProfile, config: FourBitOptions) -> Mapping[str, object]:
    explicit = {} if config.compute_dtype == "auto" else {"bnb_4bit_compute_dtype": config.compute_dtype}
    return storage.load_options(
        profile,
        config.skip,
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_quant_storage=config.storage_dtype,
        **explicit,
    )


def apply(
    model: nn.Module | None, profile: ArchitectureProfile, config: FourBitOptions, *, kind: Kind, context: BuildContext
) -> Undo:
    from luthier.plugins._bitsandbytes.layers import settle_four_bit

    assert model is not None
    return settle_four_bit(model, profile, config, kind, context)


def four_bit_patch(kind: Kind, config: type[Any], summary: str, reference: str) -> ModelPatch[Any]:
    """The patch of one of the two formats."""
    apply_kind: Callable[..., Undo] = partial(apply, kind=kind)
    return ModelPatch(
        name=kind,
        summary=summary,
        config=config,
        provides=frozenset({"weights.quantized", "weights.quantized.4bit"}),
        conflicts=frozenset({"model.prequantized"}),
        claims=frozenset({"weights.storage"}),
        numerics="changes",
        packages=storage.PACKAGES,
        supports=supports,
        load_options=partial(load_options, kind),
        memory=memory,
        apply=apply_kind,
        phase="loaded",
        reference=reference,
    )
