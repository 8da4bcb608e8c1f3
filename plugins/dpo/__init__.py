"""`dpo`: direct preference optimisation, which learns from pairs of answers (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.contracts import Reference, TrainingStage
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import hookimpl
from luthier.core.language_modeling import predicts_next_token
from luthier.core.options import option

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime

Loss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "aot",
    "aot_unpaired",
    "discopop",
    "sft",
]
SMOOTHED: Final = ("robust", "exo_pair", "aot", "aot_unpaired")
# Those of which only the difference of the two scores counts: with the others a divergence leaves a term that is not known.
OF_THE_DIFFERENCE: Final = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
ALPHA: Final = 0.5
TAU: Final = 0.05
WAYS: Final[tuple[Reference, ...]] = ("disabled", "copied", "precomputed", "model")


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """Options of `dpo`."""

    loss: Loss | FrozenDict[Loss, float] = option(
        "sigmoid",
        "A loss of TRL's, or several with their weights: `{sigmoid: 1, sft: 0.2}`. sigmoid is that of the paper.",
    )
    beta: float = option(
        0.1, "How much a change of the log-probability is worth: the higher, the nearer to the reference.", gt=0
    )
    label_smoothing: float = option(
        0.0, "The part of the pairs that is the wrong way round, for `robust`, `exo_pair` and `aot`.", ge=0, lt=0.5
    )
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = option(
        "reverse_kl", "What keeps the policy near the reference (f-DPO)."
    )
    divergence_alpha: float = option(ALPHA, "The alpha of `divergence: alpha_divergence`.", gt=0)
    ld_alpha: float | None = option(
        None, "How much tokens beyond the length of the shorter answer count (LD-DPO); null counts all of them.", ge=0, le=1
    )
    discopop_tau: float = option(TAU, "The temperature of `loss: discopop`.", gt=0)
    reference: Literal["auto", "disabled", "copied", "precomputed", "model"] = option(
        "auto",
        "How the reference is had: the adapter switched off, a frozen copy of it, log-probabilities computed before "
        "the first step, or a second model; auto takes the first that is possible.",
    )

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("loss names none")
        without_effect = [name for name, weight in self.weights.items() if weight <= 0]
        if without_effect:
            raise ValueError(f"the weights of loss are above 0: take {', '.join(without_effect)} out")
        wants_smoothing = [name for name in self.weights if name in SMOOTHED]
        if self.label_smoothing and not wants_smoothing:
            raise ValueError(f"label_smoothing belongs to loss {', '.join(SMOOTHED)}, and loss is {', '.join(self.weights)}")
        if "exo_pair" in self.weights and not self.label_smoothing:
            raise ValueError("loss exo_pair takes a label_smoothing above 0; its paper recommends 0.001")
        without = [name for name in self.weights if name not in OF_THE_DIFFERENCE]
        if self.divergence != "reverse_kl" and without:
            raise ValueError(f"divergence {self.divergence} is not defined for loss {', '.join(without)}")
        if self.divergence_alpha != ALPHA and self.divergence != "alpha_divergence":
            raise ValueError("divergence_alpha belongs to divergence: alpha_divergence")
        if self.discopop_tau != TAU and "discopop" not in self.weights:
            raise ValueError("discopop_tau belongs to loss: discopop")

    @property
    def weights(self) -> Mapping[str, float]:
        """Each loss and its weight."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss.items())


def references(config: DpoConfig) -> tuple[Reference, ...]:
    """From the cheapest to the dearest."""
    return WAYS if config.reference == "auto" else (config.reference,)


def run(runtime: Runtime, config: DpoConfig) -> Mapping[str, float]:
    from luthier.plugins.dpo.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[DpoConfig]]:
    yield TrainingStage(
        name="dpo",
        summary="Learns from pairs of answers which of them is better (TRL's DPOTrainer).",
        data_kind="preference",
        config=DpoConfig,
        packages=("trl>=1.16",),
        supports=predicts_next_token,
        references=references,
        run=run,
        priority=100,
        reference="Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290",
    )
