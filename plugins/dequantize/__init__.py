"""`dequantize`: a checkpoint that arrives quantised is trained as plain weights, so that every adapter works on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from luthier.core.contracts import Declaration, ModelPatch, Support, Undo
from luthier.core.environment import Environment
from luthier.core.frozen import thaw
from luthier.core.hookspecs import hookimpl
from luthier.core.options import NoOptions
from luthier.core.prequantized import traits_of
from luthier.core.profile import ArchitectureProfile
from luthier.core.requirements import install_command, missing_packages, why_missing

if TYPE_CHECKING:
    from torch import nn

    from luthier.core.context import BuildContext


def supports(profile: ArchitectureProfile, environment: Environment, config: NoOptions) -> Support:
    """No where the checkpoint is plain already, or its weights cannot be read back; missing where a package is."""
    quantization = profile.quantization
    if quantization is None:
        return Support.no(f"the weights of this {profile.model_type} are not quantised", "leave out patches: dequantize")
    if not quantization.dequantize:
        return Support.no(
            f"transformers cannot turn weights quantised by {quantization.method} into plain ones",
            "take a checkpoint that is not quantised",
        )
    missing = missing_packages(quantization.dequantizers, environment.packages)
    if missing:
        lacking = ", ".join(why_missing(text, environment.packages) for text in missing)
        reason = f"reading weights quantised by {quantization.method} needs {lacking}"
        return Support.missing(reason, install_command(missing))
    if quantization.dequantize == "after" and quantization.cuda and environment.device != "cuda":
        return Support.missing(f"loading weights quantised by {quantization.method} needs a CUDA device")
    return Support.yes()


def declares(profile: ArchitectureProfile, config: NoOptions) -> Declaration:
    """With it in the run the model is as if it had never been quantised."""
    return Declaration(removes=traits_of(profile.quantization) if profile.quantization else frozenset())


def load_options(profile: ArchitectureProfile, config: NoOptions) -> Mapping[str, object]:
    """The checkpoint's own settings, with what makes transformers read plain weights from it, where it can."""
    quantization = profile.quantization
    if quantization is None or quantization.dequantize != "load":
        return {}
    settings = thaw(quantization.settings) | {"quant_method": quantization.method, "dequantize": True}
    return {"quantization_config": settings}


def apply(model: nn.Module | None, profile: ArchitectureProfile, config: NoOptions, *, context: BuildContext) -> Undo:
    from luthier.plugins.dequantize.plain import make_plain

    assert model is not None
    make_plain(model, profile, context)
    return lambda: None  # the model is this run's own


@hookimpl
def luthier_model_patches() -> Iterable[ModelPatch[NoOptions]]:
    yield ModelPatch(
        name="dequantize",
        summary="Loads a checkpoint that arrives quantised as plain weights in the run's precision.",
        claims=frozenset({"weights.storage"}),
        declares=declares,
        numerics="close",
        supports=supports,
        load_options=load_options,
        apply=apply,
        phase="loaded",
    )
