"""The Python API, and the one place where registry and core meet: the registry's values go into the core's `resolve()`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.catalog import Catalog
from luthier.core.config import ModelConfig, RunConfig, SourceConfig, parse_config
from luthier.core.config import load_config as read_config
from luthier.core.config.schema import AUTO, DataConfig
from luthier.core.environment import Environment
from luthier.core.errors import ConfigError, DataError, ModelError, PlanRefused, Problem
from luthier.core.extensions import RunEvent
from luthier.core.frozen import thaw
from luthier.core.plan import ModelReference, Plan, SourceSummary
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from luthier.core.contracts import DataKind
    from luthier.core.data.inspect import Inspection
    from luthier.core.evaluation.measure import Evaluation
    from luthier.core.merging import MergeReport
    from luthier.core.trained import RunTokenizer

Observer = Callable[[RunEvent], None]


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file or a mapping, with `key=value` overrides on top; data paths become absolute.

    A relative path of data, or of what a stage's `reward` names, is looked for in the current folder first, then beside the
    configuration file. Raises ConfigError or PlanRefused with every problem, and DataError for a `dataset:` entry that is
    missing or cannot be used.
    """
    from luthier.core.data.templates import place_template
    from luthier.core.rewards.config import place_rewards

    config = read_config(source, overrides)
    base = None if isinstance(source, Mapping) else Path(source).resolve().parent
    data = dataclasses.replace(config.data, template=place_template(config.data.template, base))
    return dataclasses.replace(config, data=_placed(data, base), stage=place_rewards(config.stage, base))


def _placed(data: DataConfig, base: Path | None) -> DataConfig:
    """The data with absolute paths, and without entries to look up: a run's config.yaml stands alone.

    A path that is not there stays as it is, for the survey to complain about; URLs are no paths.
    """
    from luthier.core.data.sources import place, resolve_sources

    def placed(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(
            dataclasses.replace(source, path=place(source.path, base)) if source.path else source for source in sources
        )

    data = resolve_sources(data, base)
    return dataclasses.replace(
        data,
        train=placed(data.train),
        eval=placed(data.eval) if isinstance(data.eval, tuple) else data.eval,
        dataset_info=place(data.dataset_info, base) if data.dataset_info else None,
    )


def plan(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    catalog: Catalog | None = None,
    environment: Environment | None = None,
) -> Plan:
    """What a run would do and why, decided from the model's configuration, this machine and the installed plugins.

    Loads no weights. Raises PlanRefused with every problem, ModelError or DataError where the model or
    the data cannot be read.
    """
    from luthier.registry.catalog import discover

    catalog = catalog or discover()
    return _with_look(_resolved(config, catalog, environment), catalog)


def _resolved(
    config: RunConfig | Mapping[str, Any] | str | Path, catalog: Catalog, environment: Environment | None = None
) -> Plan:
    """The plan, without what became of the data's first rows."""
    from luthier.core.resolve import resolve
    from luthier.registry.environment import read_environment

    if not isinstance(config, RunConfig):
        config = load_config(config)
    reference, profile = read_model(config.model, catalog)
    environment = environment or read_environment()
    sources, trouble = _survey(config, catalog)
    values = {"model": reference, "profile": profile, "environment": environment, "catalog": catalog, "data": sources}
    try:
        made = resolve(config, **values)  # type: ignore[arg-type]
    except PlanRefused as refused:
        if trouble is None:
            raise
        # Data that cannot be read is one more problem beside those of the configuration.
        problem = Problem(reason=trouble.message, where=trouble.where, fix=trouble.fix)
        raise PlanRefused([*refused.problems, problem], refused.draft) from None
    if trouble is not None:
        raise trouble
    return made


def _with_look(made: Plan, catalog: Catalog) -> Plan:
    """The plan with what became of the data's first rows; without, and with a warning, where there is no tokenizer."""
    from luthier.core.data.look import look

    if not made.data:
        return made
    try:
        config, kind, tokenizer = _reading(made, catalog)
    except ModelError as error:
        warning = f"the data's tokens were not looked at: {error.message}"
        return dataclasses.replace(made, warnings=(*made.warnings, warning))
    found = look(config, catalog.formats, tokenizer.edited, kind=kind)
    return dataclasses.replace(made, data_look=found, warnings=(*made.warnings, *tokenizer.warnings))


def _reading(
    made: Plan, catalog: Catalog, notice: Callable[[str], None] = lambda text: None
) -> tuple[RunConfig, DataKind, RunTokenizer]:
    """What a plan's data is read with: its configuration, what its stage learns from, and its tokenizer."""
    from luthier.core.trained import method_of, new_tokenizer

    stage, _ = method_of(made.step("stage"), catalog)
    return parse_config(thaw(made.config)), stage.data_kind, new_tokenizer(made, catalog, notice)


def read_model(model: ModelConfig, catalog: Catalog) -> tuple[ModelReference, ArchitectureProfile]:
    """Where a model is and how it is built, from its configuration alone; a former run's output is a model too.

    Raises ModelError, ConfigError where `model.adapters` does not fit the model, or PluginError where the plugin that
    describes its architecture is broken.
    """
    from luthier.core.former import read_former, run_folder
    from luthier.registry.aliases import ALIASES
    from luthier.registry.detect import detect
    from luthier.registry.models import resolve_model

    families = [offer.value for offer in catalog.architectures]
    run = None if model.name in ALIASES else run_folder(model.name)
    if run is not None:
        look = partial(detect, families=families, trust_remote_code=model.trust_remote_code)
        reference, profile = read_former(run, model, catalog, look)
    else:
        reference = resolve_model(model.name, revision=model.revision, trust_remote_code=model.trust_remote_code)
        if model.adapters != AUTO:
            raise ConfigError(
                f"{model.name} is no run with an adapter: there is nothing to {model.adapters}",
                where="model.adapters",
                fix="leave it out, or name a run's output folder as the model",
            )
        profile = detect(
            reference.path,
            families=families,
            trust_remote_code=reference.trust_remote_code,
            gguf_file=reference.gguf_file,
            revision=reference.revision,
        )
    catalog.require_architecture(profile.model_type)
    return reference, profile


def _survey(config: RunConfig, catalog: Catalog) -> tuple[tuple[SourceSummary, ...], DataError | None]:
    from luthier.core.data import survey

    held_out = config.data.eval if isinstance(config.data.eval, tuple) else ()
    for name in {source.format.use for source in (*config.data.train, *held_out)} - {AUTO}:
        if catalog.broken_for("format", name):
            catalog.data_format(name)  # raises the broken plugin's own error, unless another one offers the name
    try:
        return survey(config.data, catalog.formats), None
    except DataError as error:
        return (), error


def train(
    what: Plan | RunConfig | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observers: Sequence[Observer] = (),
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Plan, where `what` is no plan yet, and run it; returns the content of all_results.json.

    A plan with an isolating patch runs in a clean worker process, any other in this one. `observers` hear every RunEvent.
    `resume` continues the newest checkpoint in the output folder, `overwrite` replaces an earlier run there.
    """
    from luthier.core.engine import execute
    from luthier.core.events import Broadcast
    from luthier.core.former_models import make_ready
    from luthier.registry.catalog import discover
    from luthier.registry.environment import read_environment
    from luthier.worker import run_in_worker

    catalog = discover()
    environment = read_environment()
    made = what if isinstance(what, Plan) else plan(what, catalog=catalog, environment=environment)
    if made.isolate:
        # Here, because in the worker everything that loads a model is patched.
        tell = Broadcast(observers)
        make_ready(made.model, catalog, lambda text: tell(RunEvent(kind="notice", message=text)))
        return run_in_worker(made, observers=tuple(observers), resume=resume, overwrite=overwrite, stop=stop)
    return execute(
        made,
        catalog,
        environment=environment,
        observers=tuple(observers),
        resume=resume,
        overwrite=overwrite,
        stop=stop,
    )


def inspect_data(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    rows: int = 3,
    notice: Callable[[str], None] = lambda text: None,
) -> Inspection:
    """Prepare the data of a configuration and say what there is to say about it; the first `rows` are rendered.

    The configuration is planned first, so that the rows are those its stage would learn from. Of a stream, the first
    `data.window` rows of each source are looked at. Raises PlanRefused, DataError, ModelError.
    """
    from luthier.core.data.inspect import inspect_data as inspect_prepared
    from luthier.core.data.prepare import prepare
    from luthier.registry.catalog import discover

    catalog = discover()
    planned, kind, tokenizer = _reading(_resolved(config, catalog), catalog, notice)
    if planned.data.streaming:
        window = planned.data.window
        notice(f"of the stream, the first {window:,} rows of each source are looked at")
        train = tuple(dataclasses.replace(one, rows=min(one.rows or window, window)) for one in planned.data.train)
        planned = dataclasses.replace(planned, data=dataclasses.replace(planned.data, train=train, streaming=False))
    prepared = prepare(planned, catalog.formats, tokenizer.edited, kind=kind, notice=notice)
    return inspect_prepared(
        prepared,
        tokenizer.edited,
        batch_tokens=planned.train.batch_tokens,
        packing=planned.data.packing,
        seed=planned.train.seed,
        rows=rows,
    )


def _beside(run: Path) -> Path:
    """`runs/first-merged` for runs/first, `runs/first-checkpoint-20-merged` for a checkpoint in it."""
    from luthier.core.output import CHECKPOINT

    if CHECKPOINT.fullmatch(run.name):
        return run.parent.with_name(f"{run.parent.name}-{run.name}-merged")
    return run.with_name(f"{run.name}-merged")


def merge(
    run: str | Path,
    into: str | Path | None = None,
    *,
    base: Literal["original", "dequantized"] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    tolerance: float | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> MergeReport:
    """Fold what a run trained into plain weights that transformers loads, and prove that the logits stay the same.

    `run` is an output folder or one of its checkpoints; `into` a new folder, by default `<run>-merged` beside it. `base`
    must be chosen where the run trained on quantised ones. `dtype` defaults to that of the run's base weights, `tolerance`
    is a part of the greatest logit. Raises ConfigError, OutputError, ModelError, or LuthierError where the logits differ too
    much: then nothing is written.
    """
    from luthier.core.merging import merge_run
    from luthier.registry.catalog import discover

    folder = Path(run)
    target = Path(into) if into is not None else _beside(folder.resolve())
    return merge_run(folder, target, discover(), base=base, dtype=dtype, tolerance=tolerance, notice=notice)


def evaluate(
    run: str | Path,
    data: Sequence[str | Path],
    *,
    metrics: Sequence[str] = (),
    against: str | Path | None = None,
    format: str = AUTO,
    max_rows: int | None = None,
    max_new_tokens: int = 256,
    predictions: str | Path | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """How well a run does on the rows of some files: their loss, its answers to them, or which of two answers it prefers.

    `run` is an output folder, one of its checkpoints, or any model; `against` another one, or "base" for what the run began
    with. `metrics` are those of the data's kind unless named; `predictions` is a file for what each row gave, in JSON lines.
    Raises ModelError, DataError, ConfigError, MissingEnvironmentError, OutputError.
    """
    from luthier.core.evaluation.measure import Request
    from luthier.core.evaluation.measure import evaluate as evaluate_subjects
    from luthier.core.evaluation.subjects import BASE, base_of, subject_of
    from luthier.registry.catalog import discover

    catalog = discover()
    reader = partial(read_model, catalog=catalog)
    subject = subject_of(str(run), catalog, reader)
    other = None
    if against is not None:
        named = str(against)
        other = base_of(str(run), subject, catalog) if named == BASE else subject_of(named, catalog, reader, like=subject)
    request = Request(
        data=tuple(str(path) for path in data),
        metrics=tuple(metrics),
        format_name=format,
        max_rows=max_rows,
        max_new_tokens=max_new_tokens,
        predictions=Path(predictions) if predictions is not None else None,
    )
    return evaluate_subjects(subject, other, request, catalog.formats, notice)
