"""`dora`: LoRA on the direction of a weight, its magnitude trained apart (Liu et al. 2024, arXiv:2402.09353)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.core.context import BuildContext
from luthier.core.contracts import Adapter, Declaration, MemoryTerms, Support
from luthier.core.environment import Environment
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import hookimpl
from luthier.core.memory import layer_elements_per_token
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.traits import Trait, any_of
from luthier.plugins._peft.lora_layout import check, planned_updates, quantised_whole, terms, trains_vocabulary
from luthier.plugins._peft.lora_options import LowRankOptions
from luthier.plugins._peft.saved import check_continued

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

EXPERTS = "DoRA scales the outputs of a linear layer: PEFT has no form of it for experts in one parameter"


@dataclass(frozen=True, kw_only=True)
class DoraConfig(LowRankOptions):
    """Options of `dora`."""

    init: Literal["default", "gaussian"] = option(
        "default", "Initial A: PEFT's Kaiming-uniform, or Gaussian with standard deviation 1/rank; B is zero in both."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.continue_from is not None and self.init != "default":
            raise ValueError(f"continue_from gives the weights to start from, and so does init: {self.init}; leave one out")


def supports(profile: ArchitectureProfile, environment: Environment, config: DoraConfig) -> Support:
    """No where a target is absent from the model or not made of linear layers, as fused expert weights."""
    answer = check(profile, config, experts=EXPERTS)
    return check_continued(profile, config, dora=True) if answer else answer


def declares(profile: ArchitectureProfile, config: DoraConfig) -> Declaration:
    """What depends on the options: which weights train, and whether disabling gives the model as training found it."""
    provides: set[Trait] = {"base.frozen" if config.bias == "none" else "base.partly_frozen"}
    if config.bias == "none" and config.continue_from is None:
        provides.add("reference.by_disabling")
    if config.bias == "none":
        provides.add("adapter.copies")
    if trains_vocabulary(profile, config):
        provides.add("embeddings.trained")
    requires = (any_of("vocabulary.extended"),) if config.new_tokens else ()
    reasons = {
        "weights.quantized.8bit": "DoRA needs the norm of every weight, and PEFT has no int8 form of it; 4 bits work",
        "weights.no_dora": "DoRA needs the norm of every weight, and PEFT cannot read these back",
    }
    if whole := quantised_whole(profile, config):
        reasons |= {"weights.quantized": whole}
    return Declaration(
        provides=frozenset(provides), requires=requires, conflicts=frozenset(reasons), reasons=FrozenDict(reasons)
    )


def memory(profile: ArchitectureProfile, config: DoraConfig) -> MemoryTerms:
    """LoRA's parameters and one magnitude for each output; its activations, and two more outputs of every adapted module."""
    outputs = sum(update.target.group.out_features or 0 for update in planned_updates(profile, config))
    usual = layer_elements_per_token(profile) * profile.layers
    return terms(profile, config, magnitudes=True, activation_scale=1 + 2 * outputs / usual if usual else 1.0)


def attach(
    model: nn.Module, profile: ArchitectureProfile, config: DoraConfig, context: BuildContext | None = None
) -> nn.Module:
    from luthier.plugins._peft.low_rank import adapt

    init = "gaussian" if config.init == "gaussian" else True
    return adapt(model, profile, config, context, method="dora", init=init, use_dora=True)


def merge(model: nn.Module) -> nn.Module:
    """The base model with every weight replaced by magnitude times direction."""
    from luthier.plugins._peft.low_rank import fold

    return fold(model)


def load(model: nn.Module, folder: Path, trainable: bool) -> nn.Module:
    from luthier.core.saving import load_peft
    from luthier.plugins._peft.whole import tie_whole_modules

    loaded = load_peft(model, folder, trainable)
    tie_whole_modules(loaded)
    return loaded


@hookimpl
def luthier_adapters() -> Iterable[Adapter[DoraConfig]]:
    yield Adapter(
        name="dora",
        summary="LoRA on the direction of the weights, their magnitude trained apart.",
        config=DoraConfig,
        provides=frozenset({"adapter.low_rank", "adapter.magnitude", "adapter.mergeable", "adapter.detachable"}),
        declares=declares,
        numerics="close",
        packages=("peft>=0.20",),
        supports=supports,
        attach=attach,
        merge=merge,
        load=load,
        memory=memory,
        priority=0,
        reference="Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv:2402.09353",
    )
