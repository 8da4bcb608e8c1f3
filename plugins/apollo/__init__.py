"""`apollo`: gradients scaled as Adam would, by norms of a small random projection (Zhu et al. 2024, arXiv:2412.05270).

Ours, from the paper. The authors' `apollo-torch` 1.0.3 is not free (CC-BY-NC), keeps Python objects in its state, which our
checkpoints refuse, and takes no weights of three dimensions. `pytorch-optimizer` 4.1.0 scales the projected gradient and
projects it back, which is another method, and keeps objects too.
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
from luthier.core.profile import ArchitectureProfile
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class ApolloConfig(AdamOptions):
    """Options of `apollo`, with those of every optimizer. `betas` and `eps` serve the projected gradient as well."""

    rank: int = option(32, "Rank of the projection. A matrix that is no wider than this is left to AdamW.", ge=1)
    scale_type: Literal["channel", "tensor"] = option(
        "channel", "One factor for each row or column along the longer side, or one for the whole matrix (APOLLO-Mini)."
    )
    scale: float | None = option(
        None,
        "Updates are multiplied by the root of `scale`; null stands for shorter side / rank, which makes them as large as "
        "AdamW's.",
        gt=0,
    )
    update_proj_gap: int = option(200, "Steps between two projections.", unit="steps", ge=1)
    roles: tuple[str, ...] = option(
        ("all",),
        "Roles, role groups or names of the matrices to treat so; `all` is every projection of the decoder layers, fused "
        "experts included. Whatever else trains is left to AdamW.",
    )
    seed: int = option(0, "Decides the random projections.", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.roles:
            raise ValueError("roles: names no matrix; write for example [all], or take `adamw`")


def supports(profile: ArchitectureProfile, environment: Environment, config: ApolloConfig) -> Support:
    """No where a word of `roles` means nothing in this model, or every matrix is too narrow for the rank."""
    from luthier.plugins.apollo.choice import answer

    return answer(profile, config)


def build(model: nn.Module, config: ApolloConfig, profile: ArchitectureProfile) -> tuple[Optimizer, tuple[AfterStep, ...]]:
    """Apollo over the parameters that train; raises NothingPatched when none of them is projected."""
    from luthier.plugins.apollo.choice import parameter_groups
    from luthier.plugins.apollo.optimizer import Apollo

    groups = parameter_groups(model, profile, config)
    return Apollo(groups, seed=config.seed, lr=config.lr, betas=config.betas, eps=config.eps), ()


def memory(profile: ArchitectureProfile, config: ApolloConfig) -> MemoryTerms:
    """Two float32 moments of the projected gradient and a norm; two moments in the parameter's format elsewhere."""
    from luthier.plugins.apollo.choice import state_of

    def state(matrix: Matrix) -> StateSize:
        return state_of(profile, config, matrix)

    return MemoryTerms(optimizer_copies=2, optimizer_state=state)


@hookimpl
def luthier_optimizers() -> Iterable[OptimizerMethod[ApolloConfig]]:
    yield OptimizerMethod(
        name="apollo",
        summary="Raw gradients scaled by norms that Adam has in a small random projection.",
        config=ApolloConfig,
        provides=frozenset({"optimizer.low_rank_state"}),
        requires=(any_of("params.full_rank"),),
        claims=frozenset({"optimizer.step"}),
        supports=supports,
        build=build,
        memory=memory,
        reference="Zhu et al. 2024, APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270",
    )
