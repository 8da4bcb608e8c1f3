"""`sdpa`: torch's scaled_dot_product_attention, which takes the best fused kernel the device has."""

from __future__ import annotations

from collections.abc import Iterable

from luthier.core.contracts import AttentionKernel, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import NoOptions
from luthier.core.profile import ArchitectureProfile


def supports(profile: ArchitectureProfile, environment: Environment, config: NoOptions) -> Support:
    """No where transformers' class of the model does not offer it, or where there is no attention at all."""
    if not profile.has_attention:
        return Support.no(f"{profile.model_type} has no softmax attention")
    if "sdpa" not in profile.backends:
        return Support.no(f"transformers' {profile.architecture} does not offer it", "take attention: eager")
    return Support.yes()


@hookimpl
def luthier_attention_kernels() -> Iterable[AttentionKernel[NoOptions]]:
    yield AttentionKernel(
        name="sdpa",
        summary="torch's fused scaled_dot_product_attention.",
        claims=frozenset({"attention.forward"}),
        numerics="close",
        supports=supports,
        implementation="sdpa",
        priority=100,
        reference="https://pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html",
    )
