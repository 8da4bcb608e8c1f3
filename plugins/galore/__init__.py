"""`galore`: AdamW with projected gradients and moments, so that whole weights train with little state (arXiv:2403.03507).

Ours, with galore-torch as a second backend: that one knows no weights of three dimensions, and no layerwise mode that
accumulates or resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.contracts import AfterStep, Declaration, OptimizerMethod, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.requirements import install_command, missing_packages, why_missing
from luthier.core.traits import any_of
from luthier.plugins.galore.shapes import ProjType
from luthier.plugins.galore.terms import memory_terms
from luthier.plugins.galore.weights import check_weights, selected

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from luthier.core.context import BuildContext

# galore-torch imports bitsandbytes, whether its 8-bit optimizer is used or not.
LIBRARY: Final = ("galore-torch>=1.0", "bitsandbytes>=0.50")


@dataclass(frozen=True, kw_only=True)
class GaloreConfig(AdamOptions):
    """Options of `galore`, with those of AdamW and of every optimizer."""

    rank: int | None = option(
        None,
        "Rank of the projected gradients; null is a quarter of the hidden size. Weights with a side that is not longer move "
        "by plain AdamW.",
        ge=1,
    )
    refresh: int = option(200, "Steps after which the projectors are computed anew.", unit="steps", ge=1)
    scale: float = option(0.25, "Factor on the steps of projected weights.", gt=0)
    roles: tuple[str, ...] | None = option(
        None,
        "Weights to project, by role, role group or module name (`attn`, `mlp.down`, `experts`, `q_proj`); null is every "
        "projection of the decoder layers, routed experts included.",
    )
    proj_type: ProjType = option(
        "std",
        "Side that is projected: `std` the shorter, `reverse_std` the longer, `left` the rows, `right` the columns.",
    )
    svd: Literal["exact", "randomized"] = option(
        "exact", "How projectors are computed: the whole decomposition, or a randomised one of the first directions only."
    )
    layerwise: bool = option(
        False, "Project each gradient within the backward pass and free it; accumulation then adds up projected gradients."
    )
    backend: Literal["ours", "galore-torch"] = option("ours", "Whose implementation steps.")
    bits: Literal[32, 8] = option(32, "Bits of the moments; 8 with `backend: galore-torch` on a CUDA device.", unit="bits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.roles is not None and not self.roles:
            raise ValueError("roles: names nothing; write for example [attn, mlp], or null")
        if self.backend == "ours" and self.bits != 32:
            raise ValueError(f"bits: {self.bits} needs `backend: galore-torch`; ours keeps moments of 32 bits")
        if self.backend == "galore-torch" and self.svd != "exact":
            raise ValueError(f"svd: galore-torch has no {self.svd} decomposition; take `backend: ours`")
        if self.backend == "galore-torch" and self.layerwise:
            raise ValueError("layerwise: galore-torch's neither accumulates nor resumes; take `backend: ours`")


def supports(profile: ArchitectureProfile, environment: Environment, config: GaloreConfig) -> Support:
    """No where nothing can be projected as asked; missing where galore-torch, or what it needs, is."""
    answer = check_weights(profile, config)
    if not answer or config.backend == "ours":
        return answer
    stacks = [target for target in selected(profile, config).targets if len(target.group.shape) == 3]
    if stacks:
        reason = f"galore-torch cannot project {stacks[0].group.pattern}, which has three dimensions"
        return Support.no(reason, "take `backend: ours`, or name roles without experts")
    missing = missing_packages(LIBRARY, environment.packages)
    if missing:
        lacking = ", ".join(why_missing(one, environment.packages) for one in missing)
        return Support.missing(f"`backend: galore-torch` needs {lacking}", install_command(missing))
    if config.bits == 8 and environment.device != "cuda":
        reason = f"galore-torch's 8-bit moments need a CUDA device, and this run is on {environment.device}"
        return Support.missing(reason, "take `bits: 32`")
    return Support.yes()


def declares(profile: ArchitectureProfile, config: GaloreConfig) -> Declaration:
    """Gradients that are freed as they come up are not there for other processes to add theirs to."""
    if not config.layerwise:
        return Declaration()
    return Declaration(provides=frozenset({"optimizer.layerwise"}), conflicts=frozenset({"engine.ddp"}))


def build(
    model: nn.Module, config: GaloreConfig, *, profile: ArchitectureProfile, context: BuildContext | None = None
) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """Over what trains: projected weights, other matrices, and vectors, which are not decayed.

    Raises NothingPatched where no parameter that trains can be projected.
    """
    from luthier.plugins.galore.weights import split

    parts = split(model, profile, config)
    if context is not None:
        context.notice(str(parts))
    ours = config.backend == "ours"
    projection: dict[str, Any] = {"rank": parts.rank, "scale": config.scale, "proj_type": config.proj_type}
    projection |= {"refresh": config.refresh, "svd": config.svd} if ours else {"update_proj_gap": config.refresh}
    others = list(parts.others.values())
    groups: list[dict[str, Any]] = [
        {"params": list(parts.projected.values()), "weight_decay": config.weight_decay, **projection},
        {"params": [one for one in others if one.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [one for one in others if one.ndim < 2], "weight_decay": 0.0},
    ]
    return _optimizer(config)([group for group in groups if group["params"]], config), ()


def _optimizer(config: GaloreConfig) -> Callable[[list[dict[str, Any]], GaloreConfig], Optimizer]:
    if config.backend == "galore-torch":
        from luthier.plugins.galore.library import build_library

        return build_library
    if config.layerwise:
        from luthier.plugins.galore.layerwise import LayerwiseGaLoreAdamW as Ours
    else:
        from luthier.plugins.galore.low_rank_adam import GaLoreAdamW as Ours
    return lambda groups, config: Ours(groups, lr=config.lr, betas=config.betas, eps=config.eps)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[GaloreConfig]]:
    yield OptimizerMethod(
        name="galore",
        summary="AdamW on projected gradients: whole weights train with the state of a low rank.",
        config=GaloreConfig,
        provides=frozenset({"optimizer.low_rank_state"}),
        requires=(any_of("params.full_rank"),),
        conflicts=frozenset({"adapter.low_rank", "engine.fsdp", "engine.deepspeed"}),
        claims=frozenset({"optimizer.step"}),
        declares=declares,
        supports=supports,
        build=build,
        memory=memory_terms,
        reference="Zhao et al. 2024, GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, "
        "arXiv:2403.03507",
    )
