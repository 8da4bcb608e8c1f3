"""`peft`: any other tuner of PEFT by its name, with its own options (https://huggingface.co/docs/peft)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.contracts import Adapter, Declaration, MemoryTerms, Support
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.plugins.peft import tuners

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """Options of `peft`."""

    tuner: str = option(doc="PEFT's name of it in lower case: `ia3`, `vera`, `lokr`, `prompt_tuning`, ...")
    options: Mapping[str, Any] = option(
        factory=dict, doc="Options of the tuner's own configuration class in PEFT, by its names and types."
    )
    target: tuple[str, ...] | None = option(
        None,
        "Roles, role groups or module names to adapt; null takes what the tuner is meant for: `all` for most, keys, values "
        "and `mlp.down` for `ia3`, `norm` for `ln_tuning`.",
    )
    exclude: tuple[str, ...] = option((), "What to leave out of target, in the same words.")
    layers: tuple[int, ...] | None = option(
        None, "Only these decoder layers, negative numbers counted from the end; null stands for all."
    )

    def __post_init__(self) -> None:
        unknown = tuners.unknown(self.tuner)
        if unknown:
            raise ValueError(unknown)


def supports(profile: ArchitectureProfile, environment: Environment, config: PeftConfig) -> Support:
    """No to a tuner that does not work here, to options that PEFT does not take, and to modules that it has no layer for."""
    from luthier.plugins.peft import planning

    return planning.check(profile, config)


def declares(profile: ArchitectureProfile, config: PeftConfig) -> Declaration:
    """What it can do, by tuner: folding, being a reference, and which stored weights it computes with."""
    stored = profile.quantization.method if profile.quantization else None
    return tuners.declaration(config.tuner, config.options, stored)


def memory(profile: ArchitectureProfile, config: PeftConfig) -> MemoryTerms:
    """What PEFT itself makes on the targets, asked on the meta device."""
    from luthier.plugins.peft import planning

    return planning.terms(profile, config)


def attach(model: nn.Module, profile: ArchitectureProfile, config: PeftConfig) -> nn.Module:
    from luthier.plugins.peft.attaching import attach_tuner

    return attach_tuner(model, profile, config)


def merge(model: Any) -> nn.Module:
    """The base model with every update folded into its weight."""
    from luthier.plugins.peft.attaching import fold

    return fold(model)


@hookimpl
def luthier_adapters() -> Iterable[Adapter[PeftConfig]]:
    yield Adapter(
        name="peft",
        summary="Any other tuner of PEFT, by its name and with its own options.",
        config=PeftConfig,
        provides=frozenset({"base.frozen", "adapter.detachable"}),
        declares=declares,
        numerics="changes",
        packages=("peft>=0.21",),
        supports=supports,
        attach=attach,
        merge=merge,
        memory=memory,
        example={"tuner": "ia3"},
        reference="Mangrulkar et al. 2022, PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods",
    )
