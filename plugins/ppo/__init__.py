"""`ppo`: reinforcement from a reward by proximal policy optimisation (Schulman et al. 2017), in one base model.

Ours, because TRL removed its own: policy, reference, values and a reward run of the same base are roles of one model in
memory (roles.py). Stiennon et al. 2020 and Ouyang et al. 2022 train language models this way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.config.schema import Choice
from luthier.core.contracts import Declaration, MemoryTerms, Reference, Support, TrainingStage
from luthier.core.environment import Environment
from luthier.core.errors import ModelError, Problem
from luthier.core.frozen import FrozenDict
from luthier.core.hookspecs import hookimpl
from luthier.core.language_modeling import predicts_next_token
from luthier.core.options import option
from luthier.core.profile import ArchitectureProfile
from luthier.core.rewards.config import REWARD_DOC, RunTerm, check_rewards, parse_rewards, support_rewards
from luthier.core.saving import ADAPTER_WEIGHTS
from luthier.core.traits import any_of

if TYPE_CHECKING:
    from luthier.core.catalog import Catalog
    from luthier.core.plan import Plan
    from luthier.core.runtime import Runtime

WAYS: Final[tuple[Reference, ...]] = ("disabled", "copied", "model")


@dataclass(frozen=True, kw_only=True)
class KlOptions:
    """The penalty on moving away from the reference."""

    coef: float = option(0.05, "Factor on the KL term of each token; where it adapts, what it begins with.", ge=0)
    target: float = option(6.0, "KL of an answer, summed over its tokens, that `adaptive` steers to.", unit="nats", gt=0)
    adaptive: bool = option(True, "Raise the factor while the KL is above the target, lower it while it is below.")

    def __post_init__(self) -> None:
        if self.adaptive and not self.coef:
            raise ValueError("a coef of 0 cannot adapt, because it is changed by factors: raise it, or set adaptive: false")
        if not self.adaptive and self.target != KlOptions.target:
            raise ValueError("target belongs to adaptive: true, and nothing would read it")


@dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """Options of `ppo`."""

    reward: tuple[Choice, ...] = option(doc=REWARD_DOC)
    batch: int = option(32, "Prompts of an update, with one answer each; `train.max_steps` counts updates.", ge=1)
    mini_batches: int = option(4, "Parts of an update's answers; each makes one optimizer step in each of its epochs.", ge=1)
    ppo_epochs: int = option(4, "Passes over the answers of an update.", ge=1)
    max_new_tokens: int = option(128, "Longest answer.", unit="tokens", ge=1)
    min_new_tokens: int = option(0, "Shortest answer: before that no end token can be sampled.", unit="tokens", ge=0)
    temperature: float = option(1.0, "Of the policy: its distribution is that of the logits divided by this.", gt=0)
    top_p: float = option(
        1.0, "Sample from the likeliest tokens that have this much of the probability. Below 1, ratios are not those of "
        "what was sampled from.", gt=0, le=1,
    )  # fmt: skip
    missing_eos_penalty: float = option(0.0, "Taken off the score of an answer that did not end by itself.", ge=0)
    kl: KlOptions = option(KlOptions(), "The penalty on moving away from the reference.")
    clip_range: float = option(0.2, "How far the ratio of new to old policy may go from 1 and still gain.", gt=0, lt=1)
    value_clip_range: float | None = option(
        0.2, "How far a value may move from the old one and still gain; null leaves values free.", gt=0
    )
    value_coef: float = option(0.1, "Factor on the value loss.", gt=0)
    value_adapter: bool = option(
        False, "An adapter of its own for the values, which begins as a copy of the policy's: the value loss then leaves "
        "the policy's alone, for another forward pass and the adapter's memory.",
    )  # fmt: skip
    entropy_coef: float = option(0.0, "Factor on the entropy of the policy, which is added to what is maximised.", ge=0)
    gamma: float = option(1.0, "Discount of later rewards.", ge=0, le=1)
    lam: float = option(0.95, "Lambda of generalised advantage estimation.", ge=0, le=1)
    whiten_rewards: bool = option(False, "Scale the rewards of tokens to variance 1, their mean kept.")
    whiten_advantages: bool = option(True, "Shift and scale advantages to mean 0 and variance 1.")
    reference: Literal["auto", "disabled", "copied", "model"] = option(
        "auto", "How the policy as training found it is kept: the adapter off, a frozen copy of it, or a copy of the model; "
        "`auto` takes the first that the adapter allows.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_rewards(self.reward)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) is above max_new_tokens ({self.max_new_tokens})")
        if self.mini_batches > self.batch:
            raise ValueError(f"{self.batch} answers (batch) cannot be cut into {self.mini_batches} parts (mini_batches)")


def supports(profile: ArchitectureProfile, environment: Environment, config: PpoConfig) -> Support:
    """No for a model whose loss is not that of the next token, and for a reward that is not there."""
    answer = predicts_next_token(profile, environment, config)
    return support_rewards(config.reward) if answer else answer


def references(config: PpoConfig) -> tuple[Reference, ...]:
    return WAYS if config.reference == "auto" else (config.reference,)


def declares(profile: ArchitectureProfile, config: PpoConfig) -> Declaration:
    """A value adapter needs an adapter of which there can be two."""
    if not config.value_adapter:
        return Declaration()
    return Declaration(
        requires=(any_of("adapter.copies"),),
        reasons=FrozenDict({"adapter.copies": "value_adapter: true puts a second adapter on the base; leave it out"}),
    )


def check_plan(plan: Plan, catalog: Catalog, config: PpoConfig) -> list[Problem]:
    """The reward runs that are to share the policy's base, and cannot."""
    problems = []
    for name, term in parse_rewards(config.reward):
        if not isinstance(term, RunTerm) or term.share not in (True, "true"):
            continue
        reason = why_not_on_base(plan, term, catalog)
        if reason:
            problems.append(
                Problem(
                    reason=f"{term.path} cannot share the policy's base model, because {reason}",
                    methods=("stage: ppo",),
                    where=f"stage.reward ({name})",
                    fix="write share: auto, which loads a second model, or train the reward model on the policy's base",
                )
            )
    return problems


def why_not_on_base(plan: Plan, term: RunTerm, catalog: Catalog) -> str:
    """Why a reward run cannot be a role of the policy's model, in words for after "because"; empty where it can."""
    from luthier.core.former import why_not_same_base
    from luthier.core.trained import read_run

    folder = Path(term.path).expanduser()
    try:
        reason = why_not_same_base(plan, read_run(folder), catalog)
    except ModelError as error:
        return error.message
    if reason:
        return reason
    if "base.frozen" not in plan.traits:
        return "the policy trains a part of the base model, and the scores would change with it"
    if "adapter.low_rank" not in plan.traits or not (folder / ADAPTER_WEIGHTS).is_file():
        return "not both are low-rank updates of PEFT, and only those stand beside each other on one base"
    return ""


def memory(profile: ArchitectureProfile, config: PpoConfig) -> MemoryTerms:
    """The value head: one float32 number for each feature, and one more."""
    size = profile.hidden_size + 1
    return MemoryTerms(trainable=size, added=size, trainable_bytes=4)


def run(runtime: Runtime, config: PpoConfig) -> Mapping[str, float]:
    from luthier.plugins.ppo.stage import train

    return train(runtime, config)


@hookimpl
def luthier_training_stages() -> Iterable[TrainingStage[PpoConfig]]:
    yield TrainingStage(
        name="ppo",
        summary="Reinforcement from a reward by PPO: policy, reference, values and reward in one base model.",
        config=PpoConfig,
        data_kind="prompt",
        conflicts=frozenset({"optimizer.layerwise"}),
        # None is added: old and new policy must differ by what was learned alone.
        claims=frozenset({"embeddings.noise"}),
        declares=declares,
        supports=supports,
        references=references,
        check_plan=check_plan,
        memory=memory,
        run=run,
        example={
            "reward": [{"use": "length", "max_tokens": 4}],
            "batch": 4,
            "mini_batches": 2,
            "ppo_epochs": 2,
            "max_new_tokens": 8,
        },
        reference="Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347",
    )
