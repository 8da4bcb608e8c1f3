"""What is evaluated: a run or one of its checkpoints, the model that a run began with, or any other model.

A subject is opened when its turn comes and let go of afterwards, so that no two models are in memory at one time. All are
loaded in float32 on the CPU, whatever they trained in: then two of them differ by their weights alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from luthier.core.catalog import Catalog
from luthier.core.config import parse_config
from luthier.core.config.schema import AUTO, DataConfig, ModelConfig, TrainConfig
from luthier.core.contracts import Task
from luthier.core.data.templates import apply_template, choose_template, stop_at_end_of_turn
from luthier.core.errors import ConfigError
from luthier.core.former import assert_unchanged, run_folder
from luthier.core.frozen import FrozenDict, thaw
from luthier.core.loading import load_model, load_tokenizer
from luthier.core.plan import ModelReference, Plan, Precision
from luthier.core.profile import ArchitectureProfile
from luthier.core.score_head import pad_with
from luthier.core.scoring import profile_for
from luthier.core.trained import read_run, run_tokenizer, trained_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE: Final = "base"
PRECISION: Final = Precision(name="fp32", weights="float32", compute="float32", why="evaluated")
SCORING: Final = "ForSequenceClassification"
# A run's batches may be those of a large GPU, whose float32 logits no other memory holds; the numbers are the same.
LARGEST_BATCH: Final = 4096
Notice: TypeAlias = Callable[[str], None]
ReadModel: TypeAlias = Callable[[ModelConfig], tuple[ModelReference, ArchitectureProfile]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model to evaluate.

    name     as the user wrote it; for a run's own base, that model's name
    stage    what it was trained by; "" for a model that is no run's
    task     which head it has
    data     how its rows are read: template, system message, longest row
    open     loads it for its tokenizer, in evaluation mode; `notice` hears of what in a model's files is not used
    """

    name: str
    stage: str
    task: Task
    data: DataConfig
    batch_tokens: int
    context: int | None
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    open: Callable[[PreTrainedTokenizerBase, Notice], Any]


def subject_of(name: str, catalog: Catalog, read_model: ReadModel, *, like: Subject | None = None) -> Subject:
    """The subject called `name`: a run's folder, a checkpoint, or a model, whose rows are then read as those of `like`.

    Raises ModelError where there is none.
    """
    folder = run_folder(name)
    if folder is not None:
        return _run(name, folder, catalog)
    return _model(name, *read_model(ModelConfig(name=name)), like.data if like else DataConfig(train=()))


def base_of(name: str, subject: Subject, catalog: Catalog) -> Subject:
    """The model that the run called `name` began with. Raises ConfigError where `name` is no run, or its head is new."""
    folder = run_folder(name)
    if folder is None:
        raise ConfigError(f"{name} is no run, so it has no base", where="--against", fix="name a model or another run")
    plan = read_run(folder)
    if plan.model.former is not None:
        assert_unchanged(plan.model)
        return _run(plan.model.name, Path(plan.model.former.folder), catalog)
    if plan.task != "causal":
        raise ConfigError(
            f"the head of a {plan.step('stage').method} run is new, so its base scores nothing",
            where="--against",
            fix="compare it with another run of that stage",
        )
    return _model(plan.model.name, plan.model, plan.profile, subject.data)


def _run(name: str, folder: Path, catalog: Catalog) -> Subject:
    plan = read_run(folder)
    config = parse_config(thaw(plan.config))
    return Subject(
        name=name,
        stage=plan.step("stage").method,
        task=plan.task,
        data=config.data,
        batch_tokens=min(config.train.batch_tokens, LARGEST_BATCH),
        context=plan.profile.context_length,
        tokenizer=lambda: run_tokenizer(plan, folder, catalog),
        open=lambda tokenizer, notice: trained_model(plan, folder, catalog, tokenizer),
    )


def _model(
    name: str,
    reference: ModelReference,
    profile: ArchitectureProfile,
    data: DataConfig,
) -> Subject:
    task = task_of(reference)
    plan = Plan(
        model=reference,
        profile=profile_for(profile, task),
        steps=(),
        precision=PRECISION,
        config=FrozenDict(),
        task=task,
    )

    def tokenizer() -> PreTrainedTokenizerBase:
        loaded = load_tokenizer(reference)
        if loaded.chat_template or data.template != AUTO:
            apply_template(loaded, choose_template(loaded, data.template))
        return loaded

    def load(tokenizer: PreTrainedTokenizerBase, notice: Notice) -> Any:
        model: Any = load_model(plan, notice)
        stop_at_end_of_turn(model, tokenizer)
        if task == "score":
            pad_with(model, tokenizer)
        return model.eval()

    return Subject(
        name=name,
        stage="",
        task=task,
        data=data,
        batch_tokens=TrainConfig().batch_tokens,
        context=profile.context_length,
        tokenizer=tokenizer,
        open=load,
    )


def task_of(model: ModelReference) -> Task:
    """What a model's configuration says of its head: a merged reward run scores, whatever else it could be read as."""
    if model.gguf_file:
        return "causal"
    from transformers import AutoConfig

    revision = {"revision": model.revision} if model.revision else {}
    config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code, **revision)
    return "score" if any(name.endswith(SCORING) for name in config.architectures or ()) else "causal"
