"""`muon`: momentum made orthogonal for the hidden matrices, AdamW for the rest (Jordan et al. 2024).

torch.optim.Muon takes matrices and nothing else: no fused experts, and a second optimizer for the rest. This one is ours:
one optimizer over all that trains, in which every expert of a fused tensor is the matrix that it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.contracts import AfterStep, Matrix, MemoryTerms, OptimizerMethod, StateSize, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.optimizing import AdamOptions
from luthier.core.options import option
from luthier.core.profile import ROLE_GROUPS, ArchitectureProfile, RoleGroup
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

HIDDEN = (*(role for group in ("attn", "cross", "mlp", "experts") for role in ROLE_GROUPS[group]), "mixer")
FUSED = ("mlp.experts.gate_up", "mlp.experts.down")


@dataclass(frozen=True, kw_only=True)
class MuonConfig(AdamOptions):
    """Options of `muon`, with those of every optimizer; `betas` and `eps` are of the AdamW part."""

    momentum: float = option(0.95, "Decay of the running mean of the gradient that is made orthogonal.", ge=0, lt=1)
    nesterov: bool = option(True, "Look one step ahead along the momentum.")
    ns_steps: int = option(5, "Newton-Schulz iterations; more lift smaller singular values to about 1.", ge=1, le=20)
    adjust: Literal["match_rms_adamw", "original"] = option(
        "match_rms_adamw",
        "Factor on the rate for a matrix of A outputs and B inputs: 0.2 sqrt(max(A, B)) makes the step as large as AdamW's, "
        "so that AdamW's rates fit (arXiv:2502.16982); sqrt(max(1, A/B)) is Jordan's, for rates of about 0.02.",
    )
    adamw_lr: float | None = option(
        None, "Peak learning rate of the AdamW part, on the same schedule; null takes `lr`.", gt=0
    )


def is_hidden(role: str, group: RoleGroup) -> bool:
    """Whether the weights of this group are made orthogonal: projections inside the layers, and fused experts."""
    fused = role in FUSED and len(group.shape) == 3
    projection = role in HIDDEN and group.kind in ("linear", "conv1d") and len(group.shape) == 2
    return "*" in group.pattern and (fused or projection)


def hidden_weights(profile: ArchitectureProfile) -> set[tuple[str, tuple[int, ...]]]:
    """What is made orthogonal, by role and shape."""
    return {(role, group.shape) for role, groups in profile.roles.items() for group in groups if is_hidden(role, group)}


def supports(profile: ArchitectureProfile, environment: Environment, config: MuonConfig) -> Support:
    if not hidden_weights(profile):
        return Support.no(f"no projection inside the layers of {profile.model_type} was recognised", "take adamw")
    return Support.yes()


def build(model: nn.Module, config: MuonConfig, profile: ArchitectureProfile) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """One optimizer over the trainable parameters; raises NothingPatched where none of them is a hidden matrix."""
    from luthier.plugins.muon.optimizer import muon

    return muon(model, config, profile), ()


def memory(profile: ArchitectureProfile, config: MuonConfig) -> MemoryTerms:
    """One momentum for a hidden matrix, two moments and a count of steps for the rest, in the parameter's format."""
    hidden = hidden_weights(profile)

    def state(matrix: Matrix) -> StateSize:
        if (matrix.role, matrix.shape) in hidden:
            return StateSize(numbers=matrix.size)
        return StateSize(numbers=2 * matrix.size, bytes=4)

    orthogonal = sum(profile.role_parameters.get(role, 0) for role in {role for role, _ in hidden})
    return MemoryTerms(optimizer_copies=2 - orthogonal / max(profile.parameters, 1), optimizer_state=state)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[MuonConfig]]:
    yield OptimizerMethod(
        name="muon",
        summary="Orthogonal momentum for hidden matrices, AdamW for the rest.",
        config=MuonConfig,
        requires=(any_of("params.full_rank"),),
        conflicts=frozenset({"adapter.low_rank"}),
        claims=frozenset({"optimizer.step"}),
        supports=supports,
        build=build,
        memory=memory,
        reference="Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982",
    )
