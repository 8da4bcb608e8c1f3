"""`rope_scaling`: rotary positions stretched, so that a model reads further than it was trained to.

    linear    every position divided by `factor`                       (Chen et al. 2023, arXiv:2306.15595)
    dynamic   a larger base frequency, once a text is longer than the original context
    yarn      low frequencies divided, high ones kept, a ramp between  (Peng et al. 2023, arXiv:2309.00071)
    llama3    as yarn in spirit, with Llama 3.1's bounds on the wavelength

The formulas are transformers' own; what a whole model saves in its config.json is what transformers reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.context import BuildContext
from luthier.core.contracts import ModelPatch, Support, Undo
from luthier.core.environment import Environment
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from torch import nn

RopeType = Literal["linear", "dynamic", "yarn", "llama3"]
ONLY_FOR: Final[Mapping[str, RopeType]] = {
    "beta_fast": "yarn",
    "beta_slow": "yarn",
    "attention_factor": "yarn",
    "low_freq_factor": "llama3",
    "high_freq_factor": "llama3",
}
# Found by trying all of transformers 5.23's causal language models; what is missing here is caught when it is applied.
LONGROPE: Final = "takes no rope type but its own, longrope"
TABULATED: Final = "tabulates its positions in the attention layers"
SEVERAL: Final = "builds its rotary embeddings from several configurations"
PER_TYPE: Final = "sets its rope for each type of layer, and none of them is full attention"
REFUSING: Final[Mapping[str, str]] = {
    **dict.fromkeys(("phi3", "phimoe", "phi4_multimodal"), LONGROPE),
    **dict.fromkeys(("codegen", "gptj"), TABULATED),
    **dict.fromkeys(("blt", "granite_swa", "granitemoe_swa"), SEVERAL),
    **dict.fromkeys(("beam", "deepseek_v4", "dots3_note", "dots3_note_text", "zaya"), PER_TYPE),
    "recurrent_gemma": "has no context length in its configuration",
}


@dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
    """Options of `rope_scaling`."""

    type: RopeType = option("yarn", "How positions are stretched.")
    factor: float = option(doc="How many times the original context is to be read.", gt=1)
    original_context: int | None = option(
        None, "The context the model was trained for; null stands for what its configuration says.", unit="tokens", ge=1
    )
    beta_fast: float | None = option(
        None, "With `yarn`: frequencies that turn this often or more in the original context stay; null stands for 32.", gt=0
    )
    beta_slow: float | None = option(
        None, "With `yarn`: frequencies that turn this often or less are divided by `factor`; null stands for 1.", gt=0
    )
    attention_factor: float | None = option(
        None, "With `yarn`: factor on cosine and sine; null stands for 0.1 ln(factor) + 1.", gt=0
    )
    low_freq_factor: float | None = option(
        None, "With `llama3`: wavelengths over original context / this are multiplied by `factor`; null stands for 1.", gt=0
    )
    high_freq_factor: float | None = option(
        None, "With `llama3`: wavelengths under original context / this stay as they are; null stands for 4.", gt=0
    )
    override: bool = option(
        False, "Replace the scaling that the model arrives with; then `original_context` has to be given."
    )

    def __post_init__(self) -> None:
        wrong = [name for name, kind in ONLY_FOR.items() if getattr(self, name) is not None and kind != self.type]
        if wrong:
            raise ValueError(f"{wrong[0]} belongs to the type {ONLY_FOR[wrong[0]]}, and the type is {self.type}")
        if self.override and self.original_context is None:
            raise ValueError("override needs original_context: what the model arrives with does not tell it reliably")
        fast, slow = self.beta_fast or 32.0, self.beta_slow or 1.0
        if fast <= slow:
            raise ValueError(f"beta_fast has to be greater than beta_slow, got {fast} and {slow}")
        high, low = self.high_freq_factor or 4.0, self.low_freq_factor or 1.0
        if high <= low:
            raise ValueError(f"high_freq_factor has to be greater than low_freq_factor, got {high} and {low}")

    def parameters(self, original: int) -> dict[str, object]:
        """transformers' `rope_parameters` for a model with this original context, base frequency left out."""
        named: dict[str, object] = {"rope_type": self.type, "factor": float(self.factor)}
        if self.type in ("yarn", "llama3"):
            named["original_max_position_embeddings"] = original
        if self.type == "yarn":
            optional = {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow, "attention_factor": self.attention_factor}
            named |= {key: float(value) for key, value in optional.items() if value is not None}
        if self.type == "llama3":
            named["low_freq_factor"] = float(self.low_freq_factor or 1.0)
            named["high_freq_factor"] = float(self.high_freq_factor or 4.0)
        return named

    def context(self, original: int) -> int:
        """transformers' `max_position_embeddings`: the stretched context.

        With `dynamic` the original one: there it is the length from which on transformers stretches.
        """
        return original if self.type == "dynamic" else int(original * self.factor)


def supports(profile: ArchitectureProfile, environment: Environment, config: RopeScalingConfig) -> Support:
    name = profile.model_type
    if profile.rope is None:
        return Support.no(f"{name} has no rotary position embeddings")
    if name in REFUSING:
        return Support.no(f"transformers' {name} {REFUSING[name]}")
    if profile.rope != "default" and not config.override:
        return Support.no(
            f"{name} arrives with a scaling already ({profile.rope})",
            "leave it out, or set `override: true` and `original_context`",
        )
    if config.original_context is None and profile.context_length is None:
        return Support.no(f"{name} does not say for which context it was trained", "set `original_context`")
    return Support.yes()


def apply(
    model: nn.Module | None, profile: ArchitectureProfile, config: RopeScalingConfig, context: BuildContext | None = None
) -> Undo:
    """New rotary embeddings, from the model's configuration with the new parameters in it."""
    from luthier.plugins.rope_scaling.rotary import rescale

    assert model is not None
    return rescale(model, config, context.notice if context is not None else lambda text: None)


@hookimpl
def luthier_model_patches() -> Iterable[ModelPatch[RopeScalingConfig]]:
    yield ModelPatch(
        name="rope_scaling",
        summary="Rotary positions stretched for a longer context (linear, dynamic, yarn, llama3).",
        config=RopeScalingConfig,
        provides=frozenset({"base.changed"}),
        claims=frozenset({"positions.scale"}),
        numerics="changes",
        supports=supports,
        apply=apply,
        phase="loaded",
        persistent=True,
        example={"factor": 2.0},
        reference="Peng et al. 2023, YaRN: Efficient Context Window Extension of Large Language Models, arXiv:2309.00071",
    )
