"""`kto`: learning from answers that are good or bad, each by itself (Ethayarajh et al. 2024, arXiv:2402.01306)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.contracts import Reference, TrainingStage
from luthier.core.hookspecs import hookimpl
from luthier.core.language_modeling import predicts_next_token
from luthier.core.options import option

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime

# From the cheapest to the dearest.
WAYS: Final[tuple[Reference, ...]] = ("disabled", "copied", "precomputed", "model")


@dataclass(frozen=True, kw_only=True)
class KtoConfig:
    """Options of `kto`."""

    loss: Literal["kto", "apo_zero_unpaired"] = option(
        "kto", "The paper's, or that of APO-zero, which needs no estimate of the divergence (D'Oosterlinck et al. 2024)."
    )
    beta: float = option(
        0.1, "How much a change of the log-probability is worth: the higher, the nearer to the reference.", gt=0
    )
    desirable_weight: float = option(1.0, "What the loss of a good answer counts.", gt=0)
    undesirable_weight: float = option(1.0, "What the loss of a bad answer counts.", gt=0)
    reference: Literal["auto", "disabled", "copied", "precomputed", "model"] = option(
        "auto",
        "How the reference is had: the adapter switched off, a frozen copy of it, log-probabilities computed before the "
        "first step, or a second model; auto takes the first of them that is possible.",
    )


def references(config: KtoConfig) -> tuple[Reference, ...]:
    return WAYS if config.reference == "auto" else (config.reference,)


def run(runtime: Runtime, config: KtoConfig) -> Mapping[str, float]:
    from luthier.plugins.kto.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[KtoConfig]]:
    yield TrainingStage(
        name="kto",
        summary="Learns from answers that are rated good or bad, each by itself (TRL's KTOTrainer).",
        data_kind="unpaired",
        config=KtoConfig,
        packages=("trl>=1.16",),
        supports=predicts_next_token,
        references=references,
        run=run,
        priority=100,
        reference="Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization, arXiv:2402.01306",
    )
