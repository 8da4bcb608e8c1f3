"""`sft`: supervised fine-tuning on conversations: the assistant's turns are learned, the rest is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.best import HELD_OUT, LOSS, EarlyStopping, comparing_needs
from luthier.core.contracts import Declaration, Support, TrainingStage
from luthier.core.environment import Environment
from luthier.core.evaluation.metrics import TEXT_METRICS
from luthier.core.evaluation.words import PACKAGES
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import hookimpl
from luthier.core.language_modeling import predicts_next_token
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.requirements import install_command, missing_packages, why_missing
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime

OF_ANSWERS: Final = ("eval_samples", "max_new_tokens")


@dataclass(frozen=True, kw_only=True)
class SftConfig(EarlyStopping):
    """Options of `sft`."""

    label_smoothing: float = option(
        0.0,
        "Learn each token with this part of the target spread evenly over the vocabulary (Szegedy et al. 2016). The "
        "held-out loss is measured without it.",
        ge=0,
        lt=1,
    )
    evaluate_by: tuple[Literal["loss", "exact_match", "rouge", "bleu"], ...] = option(
        ("loss",),
        "What is measured on held-out rows, every `train.eval_every` steps and at the end. Anything but the loss compares "
        "generated answers (greedy) with the last learned turn of their rows.",
    )
    eval_samples: int = option(100, "At most so many held-out rows are answered in an evaluation.", unit="rows", ge=1)
    max_new_tokens: int = option(128, "At most so long is an answer.", unit="tokens", ge=1)
    keep_best: Literal["loss", "exact_match", "rouge1", "rouge2", "rougeL", "bleu"] | None = option(
        None,
        "Save the weights of the evaluation that was best by this metric (the lowest loss, the highest of any other), not "
        "those of the last step. Needs `train.eval_every`.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.evaluate_by or len(set(self.evaluate_by)) < len(self.evaluate_by):
            raise ValueError("evaluate_by: names at least one metric, and each once")
        changed = [
            field.name
            for field in dataclasses.fields(self)
            if field.name in OF_ANSWERS and getattr(self, field.name) != field.default
        ]
        if changed and not self.text_metrics:
            raise ValueError(f"{changed[0]}: no answers are generated; evaluate_by names none of {', '.join(TEXT_METRICS)}")
        measured = {name for one in self.evaluate_by for name in TEXT_METRICS.get(one, (one,))}
        compared = self.keep_best or (LOSS if self.early_stopping is not None else None)
        if compared is not None and compared not in measured:
            key = "keep_best" if self.keep_best else "early_stopping"
            raise ValueError(f"{key}: compares {compared}, which evaluate_by does not measure")

    @property
    def text_metrics(self) -> tuple[str, ...]:
        """The metrics that generated answers are measured by."""
        return tuple(metric for metric in self.evaluate_by if metric in TEXT_METRICS)


def supports(profile: ArchitectureProfile, environment: Environment, config: SftConfig) -> Support:
    support = predicts_next_token(profile, environment, config)
    missing = missing_packages(PACKAGES, environment.packages) if {"rouge", "bleu"} & set(config.evaluate_by) else []
    if support and missing:
        lacking = ", ".join(why_missing(package, environment.packages) for package in missing)
        return Support.missing(f"evaluate_by needs {lacking}", install_command(missing))
    return support


def declares(profile: ArchitectureProfile, config: SftConfig) -> Declaration:
    needs = comparing_needs(config.keep_best, config.early_stopping)
    if config.evaluate_by != (LOSS,):
        reason = f"evaluate_by: {', '.join(config.evaluate_by)} is measured on them"
        requires = tuple(dict.fromkeys((any_of(HELD_OUT), *needs.requires)))
        reasons = {HELD_OUT: reason} | dict(needs.reasons)
        needs = dataclasses.replace(needs, requires=requires, reasons=FrozenDict(reasons))
    if config.text_metrics:
        reason = "evaluate_by: an answer is compared with the last learned turn, which has to begin somewhere"
        conflicts = frozenset({"rows.all_learned"})
        reasons = dict(needs.reasons) | {"rows.all_learned": reason}
        needs = dataclasses.replace(needs, conflicts=conflicts, reasons=FrozenDict(reasons))
    if config.label_smoothing:
        needs = dataclasses.replace(needs, claims=frozenset({"loss.forward"}))
    return needs


def run(runtime: Runtime, config: SftConfig) -> Mapping[str, float]:
    from luthier.plugins.sft.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[SftConfig]]:
    yield TrainingStage(
        name="sft",
        summary="Supervised fine-tuning on conversations; learns the assistant's turns.",
        config=SftConfig,
        data_kind="conversation",
        provides=frozenset({"stage.packs", "stage.streams"}),
        declares=declares,
        supports=supports,
        run=run,
        priority=100,
        reference="Ouyang et al. 2022, Training language models to follow instructions, section 3.5, arXiv:2203.02155",
    )
