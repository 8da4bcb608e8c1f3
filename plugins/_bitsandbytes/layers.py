"""A loaded model whose linear layers are bitsandbytes': checked against the plan, frozen, and made to compute right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn

from luthier.core.contracts import NothingPatched, Undo
from luthier.core.dequantize import is_quantized_linear
from luthier.core.profile import ArchitectureProfile
from luthier.core.quantized import set_compute_dtype, settle
from luthier.plugins._bitsandbytes.storage import Storage, storage_of

if TYPE_CHECKING:
    from luthier.core.context import BuildContext
    from luthier.plugins._bitsandbytes.four_bit import FourBitOptions

SETTINGS: Final = ("support_avx512bf16_for_cpu", "compute_dtype", "compute_type_is_set")


def settle_four_bit(
    model: nn.Module, profile: ArchitectureProfile, config: FourBitOptions, kind: str, context: BuildContext
) -> Undo:
    """Counts, freezes, and sets the compute format; raises NothingPatched where no layer is quantised."""
    found = _quantised(model, Linear4bit)
    _report(kind, model, found, storage_of(profile, config.skip), profile, context)
    before = {name: {key: getattr(module, key) for key in SETTINGS} for name, module in found.items()}
    # Loading did this already, for every 4-bit model; a model that came another way has it done here.
    settle(model, context.precision)
    if config.compute_dtype != "auto":
        for module in found.values():
            set_compute_dtype(module, getattr(torch, config.compute_dtype))
    thaw = _freeze(model)

    def undo() -> None:
        thaw()
        for name, values in before.items():
            vars(found[name]).update(values)

    return undo


def settle_int8(model: nn.Module, profile: ArchitectureProfile, skip: tuple[str, ...], context: BuildContext) -> Undo:
    """Counts and freezes; raises NothingPatched where no layer is quantised."""
    found = _quantised(model, Linear8bitLt)
    _report("int8", model, found, storage_of(profile, skip), profile, context)
    return _freeze(model)


def _quantised(model: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _report(
    method: str,
    model: nn.Module,
    found: dict[str, Any],
    storage: Storage,
    profile: ArchitectureProfile,
    context: BuildContext,
) -> None:
    """Says how much was quantised and what was not, and where that differs from the plan."""
    if not found:
        raise NothingPatched(
            f"{method}: the loaded model has no quantised layer; it must be loaded with the load options of this patch"
        )
    unready = [name for name, module in found.items() if not is_quantized_linear(module)]
    if unready:
        raise NothingPatched(f"{method}: {len(unready)} layers hold no quantised weight, first {unready[0]}")
    planned = {target.name for target in storage.quantised}
    lost, extra = sorted(planned - set(found)), sorted(set(found) - planned)
    share = sum(module.in_features * module.out_features for module in found.values()) / max(profile.parameters, 1)
    text = f"{method}: {len(found)} linear layers are quantised, {share:.0%} of the parameters"
    if storage.fused:
        text += f"; {len(storage.fused)} fused expert weights are not"
    if lost:
        text += f"; {profile.architecture} keeps {len(lost)} more in full precision, first {lost[0]}"
    if extra:
        text += f"; {len(extra)} of them have no role in the profile, first {extra[0]}"
    context.notice(text)


def _freeze(model: nn.Module) -> Undo:
    """Freezes the base: what an adapter adds later trains. Undone, the unquantised parameters are as they were."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)

    def undo() -> None:
        for parameter in trained:
            parameter.requires_grad_(True)

    return undo
