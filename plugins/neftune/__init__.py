"""`neftune`: noise on the input embeddings while training (Jain et al. 2023, arXiv:2310.05914)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts import ModelPatch, Support, Undo
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class NeftuneConfig:
    """Options of `neftune`."""

    alpha: float = option(
        5.0, "Size of the noise: each number of an embedding gets a uniform one from -1 to 1, times alpha / sqrt(L d).", gt=0
    )


def supports(profile: ArchitectureProfile, environment: Environment, config: NeftuneConfig) -> Support:
    if not profile.has("embed"):
        return Support.no(f"no token embeddings were recognised in {profile.model_type}", "see `luthier profile`")
    return Support.yes()


def apply(model: nn.Module | None, profile: ArchitectureProfile, config: NeftuneConfig) -> Undo:
    """Hooks on the embeddings and on the decoder that calls them; raises NothingPatched where the model names neither."""
    from luthier.plugins.neftune.noise import add_noise

    assert model is not None
    return add_noise(model, config.alpha)


@hookimpl
def luthier_model_patches() -> Iterable[ModelPatch[NeftuneConfig]]:
    yield ModelPatch(
        name="neftune",
        summary="Noise on the input embeddings while training, for instructions that are followed better.",
        config=NeftuneConfig,
        claims=frozenset({"embeddings.noise"}),
        numerics="changes",
        supports=supports,
        apply=apply,
        phase="attached",
        reference="Jain et al. 2023, NEFTune: Noisy Embeddings Improve Instruction Finetuning, arXiv:2310.05914",
    )
