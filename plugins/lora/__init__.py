"""`lora`: low-rank updates beside frozen weights, through PEFT (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.context import BuildContext
from luthier.core.contracts import Adapter, Declaration, MemoryTerms, Support
from luthier.core.environment import Environment
from luthier.core.errors import ModelError
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ROLE_GROUPS, ArchitectureProfile
from luthier.core.traits import AnyOf, Trait, any_of
from luthier.plugins._peft.lora_layout import check, planned_updates, quantised_whole, selection, terms, trains_vocabulary
from luthier.plugins._peft.lora_options import LowRankOptions
from luthier.plugins._peft.saved import check_continued, check_stacked, read_saved

if TYPE_CHECKING:
    from torch import nn

FROM_WEIGHTS = ("pissa", "olora", "corda")
DEFAULT_BATCHES = 8
AT_THE_BASE = ("default", "gaussian", "eva")


@dataclass(frozen=True, kw_only=True)
class LoraConfig(LowRankOptions):
    """Options of `lora`."""

    init: Literal["default", "gaussian", "pissa", "olora", "loftq", "eva", "corda"] = option(
        "default",
        "Where A and B start: A Kaiming-uniform (default) or normal with standard deviation 1/rank (gaussian) and B zero; "
        "the leading part of the weight (pissa, olora; corda by the inputs' covariance); the quantisation error (loftq); or "
        "A the leading directions of the inputs (eva).",
    )
    init_batches: int = option(DEFAULT_BATCHES, "Training batches that `eva` and `corda` look at.", ge=1)
    svd_iterations: int | None = option(
        None, "Rounds of a randomised SVD for `pissa` and `loftq`: faster, nearly the same; null for the exact one.", ge=1
    )
    corda_method: Literal["ipm", "kpm"] = option(
        "ipm", "What `corda` trains: the directions that the data uses most (ipm), or least (kpm, keeps knowledge)."
    )
    stack_on: tuple[str, ...] = option(
        (), "Folders of saved LoRA adapters that stay below, frozen, while the new one trains on top of them."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.continue_from is not None and self.init != "default":
            raise ValueError(f"continue_from gives the weights to start from, and so does init: {self.init}; leave one out")
        for name, unused, inits in (
            ("init_batches", self.init_batches == DEFAULT_BATCHES, ("eva", "corda")),
            ("svd_iterations", self.svd_iterations is None, ("pissa", "loftq")),
            ("corda_method", self.corda_method == "ipm", ("corda",)),
        ):
            if not unused and self.init not in inits:
                raise ValueError(f"{name} belongs to init {' or '.join(inits)}, and init is {self.init}")

    @property
    def starts_at_the_base(self) -> bool:
        """Whether the model with the adapter off is the model as training found it."""
        return self.init in AT_THE_BASE and self.continue_from is None and not self.stack_on


def supports(profile: ArchitectureProfile, environment: Environment, config: LoraConfig) -> Support:
    """No where a target is absent from the model or not made of linear layers, or an option cannot be honoured on it."""
    plain = config.init in ("default", "gaussian")
    experts = "" if plain else f"init {config.init} is made for linear layers: take init: default, or train them apart"
    answer = check(profile, config, experts=experts)
    if answer:
        answer = check_inputs(profile, config)
    if answer:
        answer = check_ranks(profile, config)
    if answer:
        answer = check_continued(profile, config)
    return check_stacked(profile, config, config.stack_on) if answer else answer


def check_inputs(profile: ArchitectureProfile, config: LoraConfig) -> Support:
    """A routed expert sees the tokens that were sent to it: which of them count cannot be told from its input."""
    for target in selection(profile, config).targets if config.init in ("eva", "corda") else ():
        if target.role in ROLE_GROUPS["experts"]:
            return Support.no(
                f"init {config.init} goes by what a layer sees of every token, and {target.group.pattern} is a routed "
                "expert, which sees only some of them",
                f"leave {target.role} out of target, or take another init",
            )
    return Support.yes()


def check_ranks(profile: ArchitectureProfile, config: LoraConfig) -> Support:
    """A start from singular vectors has no more of them than the smaller side of the matrix."""
    for update in () if config.init in ("default", "gaussian") else planned_updates(profile, config):
        group = update.target.group
        inputs, outputs = group.in_features or 0, group.out_features or 0
        most = inputs if config.init == "eva" else min(inputs, outputs)
        if update.rank > most:
            return Support.no(
                f"init {config.init} has no {update.rank} directions in {update.target.name}, which is {inputs} x {outputs}",
                f"rank: {most} or less",
            )
    return Support.yes()


def declares(profile: ArchitectureProfile, config: LoraConfig) -> Declaration:
    """What depends on the options: which weights train, whether disabling gives the start, what the base may be."""
    provides: set[Trait] = {"base.frozen" if config.bias == "none" else "base.partly_frozen"}
    if config.starts_at_the_base and config.bias == "none":
        provides.add("reference.by_disabling")
    if config.bias == "none":
        provides.add("adapter.copies")
    if trains_vocabulary(profile, config):
        provides.add("embeddings.trained")
    reasons: dict[Trait, str] = {}
    requires: tuple[AnyOf, ...] = ()
    if config.init in FROM_WEIGHTS:
        reason = f"init {config.init} takes a part of the weights out of them, which quantised ones cannot hold exactly"
        reasons = {"weights.quantized": f"{reason}; init loftq is made for them", "model.prequantized": reason}
    elif config.init == "loftq":
        requires = (any_of("weights.quantized"),)
        reasons = {"model.prequantized": "init loftq needs the weights as they were before they were quantised"}
    if whole := quantised_whole(profile, config):
        reasons.setdefault("weights.quantized", whole)
    if config.new_tokens:
        requires += (any_of("vocabulary.extended"),)
    conflicts = frozenset(reasons)
    if "reference.by_disabling" not in provides:
        below = "what it stands on would go off with it"
        start = "with these options the model without it is not the one that training starts from"
        reasons["reference.by_disabling"] = below if config.stack_on else start
    return Declaration(provides=frozenset(provides), requires=requires, conflicts=conflicts, reasons=FrozenDict(reasons))


def memory(profile: ArchitectureProfile, config: LoraConfig) -> MemoryTerms:
    """rank x (in + out) float32 parameters for every adapted module, and what the other options add.

    Frozen factors count as constant bytes: those that were taken out of the weights, and adapters below.
    """
    frozen = 0
    if config.init in FROM_WEIGHTS:
        frozen += sum(update.parameters for update in planned_updates(profile, config))
    for folder in config.stack_on:
        try:
            frozen += read_saved(folder).parameters
        except ModelError:
            continue  # `supports` says it
    return terms(profile, config, constant=4 * frozen)


def attach(
    model: nn.Module, profile: ArchitectureProfile, config: LoraConfig, context: BuildContext | None = None
) -> nn.Module:
    from luthier.plugins.lora.updates import attach_lora

    return attach_lora(model, profile, config, context)


def merge(model: nn.Module) -> nn.Module:
    """The base model with every update added to its weight."""
    from luthier.plugins._peft.low_rank import fold

    return fold(model)


def save(model: nn.Module, folder: Path) -> None:
    from luthier.plugins.lora.saving import save as write

    write(model, folder)


def load(model: nn.Module, folder: Path, trainable: bool) -> nn.Module:
    from luthier.plugins.lora.saving import load as read

    return read(model, folder, trainable)


@hookimpl
def luthier_adapters() -> Iterable[Adapter[LoraConfig]]:
    yield Adapter(
        name="lora",
        summary="Low-rank updates beside frozen weights.",
        config=LoraConfig,
        provides=frozenset({"adapter.low_rank", "adapter.mergeable", "adapter.detachable", "adapter.stacks"}),
        declares=declares,
        packages=("peft>=0.20",),
        supports=supports,
        attach=attach,
        merge=merge,
        save=save,
        load=load,
        memory=memory,
        priority=100,
        reference="Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685",
    )
