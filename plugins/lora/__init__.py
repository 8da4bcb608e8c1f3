"""`lora`: low-rank updates beside frozen weights, through PEFT (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.contracts import Adapter, MemoryTerms, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ROLE_GROUPS, ROLES, ArchitectureProfile, RoleGroup

if TYPE_CHECKING:
    from torch import nn

EVERY_PROJECTION = ("attn", "mlp", "mixer")
LINEAR_KINDS = ("linear", "conv1d")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Options of `lora`."""

    rank: int = option(16, "Rank of the update: the thin side of its two matrices.", ge=1)
    alpha: float | None = option(None, "The update is scaled by alpha / rank; null stands for 2 x rank.", gt=0)
    dropout: float = option(0.0, "Dropout on the input of the update.", ge=0, lt=1)
    target: tuple[str, ...] = option(
        ("all",),
        "Roles or role groups to adapt (`attn`, `mlp`, `attn.q`, `mixer`, ...); `all` is every linear projection of the "
        "decoder layers, routed experts excepted.",
    )
    init: Literal["default", "gaussian"] = option(
        "default", "Initial A: PEFT's Kaiming-uniform, or Gaussian with standard deviation 1/rank; B is zero in both."
    )

    def __post_init__(self) -> None:
        known = {"all", *ROLES, *ROLE_GROUPS}
        if not self.target:
            raise ValueError("names no role; write for example [attn, mlp]")
        unknown = [name for name in self.target if name not in known]
        if unknown:
            raise ValueError(f"target: unknown role {', '.join(unknown)}; known are: {', '.join(sorted(known))}")

    @property
    def scaling_alpha(self) -> float:
        return self.alpha if self.alpha is not None else 2.0 * self.rank


def wanted_roles(config: LoraConfig, profile: ArchitectureProfile) -> tuple[str, ...]:
    """The roles or groups to adapt, with `all` resolved to those the model has."""
    if "all" in config.target:
        return tuple(role for role in EVERY_PROJECTION if profile.has(role))
    return config.target


def target_groups(profile: ArchitectureProfile, config: LoraConfig) -> tuple[RoleGroup, ...]:
    """The module groups that get an update, each once; `all` leaves out what is no linear layer."""
    everything = "all" in config.target
    groups = {group: None for role in wanted_roles(config, profile) for group in profile.groups(role)}
    return tuple(group for group in groups if group.kind in LINEAR_KINDS or not everything)


def supports(profile: ArchitectureProfile, environment: Environment, config: LoraConfig) -> Support:
    """No where a target role is absent from the model, or is not made of linear layers."""
    missing = [role for role in wanted_roles(config, profile) if not profile.has(role)]
    words = {"attn": "attention projections", "mlp": "MLP projections", "experts": "expert weights"}
    if missing:
        names = ", ".join(f"{role} ({words.get(role, ROLES.get(role, 'role'))})" for role in missing)
        has = ", ".join(role for role, found in profile.roles.items() if any(group.kind in LINEAR_KINDS for group in found))
        return Support.no(f"{profile.model_type} has no modules of role {names}", f"take target from: {has}")
    groups = target_groups(profile, config)
    odd = [group for group in groups if group.kind not in LINEAR_KINDS]
    if odd:
        return Support.no(
            f"{odd[0].pattern} is a {odd[0].kind} of {profile.model_type}, not a linear layer",
            "leave that role out of target",
        )
    if profile.tied_embeddings and any(group in profile.groups("head") for group in groups):
        return Support.no(
            f"the head of {profile.model_type} shares its matrix with the embeddings: an update of one could not be merged",
            "leave `head` out of target",
        )
    if not groups:
        return Support.no(f"no linear projection was recognised in {profile.model_type}", "see `luthier profile`")
    return Support.yes()


def memory(profile: ArchitectureProfile, config: LoraConfig) -> MemoryTerms:
    """rank x (in + out) float32 parameters for every adapted module, each of which casts its input to float32."""
    sizes = [((group.in_features or 0) + (group.out_features or 0), group.count) for group in target_groups(profile, config)]
    added = config.rank * sum(size * count for size, count in sizes)
    inputs = sum((group.in_features or 0) * group.count for group in target_groups(profile, config))
    return MemoryTerms(trainable=added, added=added, trainable_bytes=4, cast_inputs=inputs)


def attach(model: nn.Module, profile: ArchitectureProfile, config: LoraConfig) -> nn.Module:
    from luthier.plugins.lora.updates import attach_lora

    return attach_lora(model, profile, config)


def merge(model: nn.Module) -> nn.Module:
    """The base model with every update added to its weight."""
    return model.merge_and_unload()


@hookimpl
def luthier_adapters() -> Iterable[Adapter[LoraConfig]]:
    yield Adapter(
        name="lora",
        summary="Low-rank updates beside frozen weights.",
        config=LoraConfig,
        provides=frozenset(
            {"base.frozen", "adapter.low_rank", "adapter.mergeable", "adapter.detachable", "reference.by_disabling"}
        ),
        packages=("peft>=0.20",),
        supports=supports,
        attach=attach,
        merge=merge,
        memory=memory,
        priority=100,
        reference="Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685",
    )
