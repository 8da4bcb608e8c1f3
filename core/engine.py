"""`execute()`: carries a plan out, from top to bottom. Everything was decided before; this file only does it in order.

claim the output folder
a former run's adapter folded into the weights, where the model is one -> tokenizer, data
patches of phase "load" -> model -> attention -> patches "loaded" -> adapter -> patches "attached"
stage: trains, with the plan's optimizer
save, report, undo
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from luthier.core.calling import call
from luthier.core.catalog import Catalog
from luthier.core.config import parse_config
from luthier.core.contracts import Adapter, AttentionKernel, ModelPatch, Phase, TrainingStage
from luthier.core.data import PreparedData, prepare
from luthier.core.data.stream_open import open_stream, prepare_beside
from luthier.core.data.templates import stop_at_end_of_turn
from luthier.core.environment import Environment
from luthier.core.errors import Interrupted, LuthierError, OutOfMemoryError
from luthier.core.events import Broadcast
from luthier.core.extensions import RunEvent
from luthier.core.former_models import begin_from
from luthier.core.frozen import thaw
from luthier.core.loading import load_model
from luthier.core.meter import MemoryMeter, ran_out_of_memory
from luthier.core.output import OutputFolder
from luthier.core.plan import Plan
from luthier.core.quantized import count_parameters
from luthier.core.results import assert_same_run, collect_results, write_description, write_report
from luthier.core.runtime import Runtime
from luthier.core.trained import new_tokenizer


def execute(
    plan: Plan,
    catalog: Catalog,
    *,
    environment: Environment,
    observers: tuple[Callable[[RunEvent], None], ...] = (),
    resume: bool = False,
    overwrite: bool = False,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Run a plan in this process and return the content of all_results.json.

    `observers` and the catalog's own hear every RunEvent; an error in one is logged and counted, never raised. Setting
    `stop` saves a checkpoint at the next step and raises Interrupted. Raises a LuthierError for whatever the user can mend.
    """
    config = parse_config(thaw(plan.config))
    broadcast = Broadcast([*observers, *(offer.value for offer in catalog.observers)])
    started = time.monotonic()
    with OutputFolder.claim(config.output, resume=resume, overwrite=overwrite) as output:
        if resume:
            assert_same_run(output, plan)
        runtime = Runtime(
            plan=plan,
            config=config,
            catalog=catalog,
            output=output,
            emit_to=broadcast,
            meter=MemoryMeter(plan.device),
            resume_from=output.latest_checkpoint if resume else None,
            stop=stop or threading.Event(),
        )
        try:
            _prepare(runtime)
            _build(runtime)
            output.remove_previous()
            write_description(output, plan, environment)
            for notice in output.notices:
                runtime.emit("notice", notice)
            metrics = _train(runtime)
            results = collect_results(runtime, metrics, seconds=time.monotonic() - started, observer_errors=broadcast.errors)
            _save(runtime, results)
        except LuthierError as error:
            runtime.emit("error", str(error))
            raise
        except (MemoryError, RuntimeError) as error:
            # The stage says more about its own; this is about loading, attaching and saving.
            if not ran_out_of_memory(error):
                raise
            lack = _out_of_memory(runtime, error)
            runtime.emit("error", str(lack))
            raise lack from error
        finally:
            runtime.meter.stop()
            if runtime.stream is not None:
                runtime.stream.close()
            _undo(runtime)
        runtime.emit("finish", **results)
        return results


def _prepare(runtime: Runtime) -> None:
    """Tokenizer and data come first: what is wrong with them is known before the weights are loaded."""
    begin_from(runtime.plan.model, runtime.catalog, runtime.notice)
    runtime.emit("phase", "reading and tokenising the data", name="data")
    made = new_tokenizer(runtime.plan, runtime.catalog, runtime.notice)
    runtime.tokenizer, runtime.original_tokenizer = made.edited, made.original
    stage, _ = runtime.method(runtime.plan.step("stage"))
    assert isinstance(stage, TrainingStage)
    what = (runtime.config, runtime.catalog.formats, runtime.tokenizer)
    progress = partial(_rows_done, runtime)
    if runtime.config.data.streaming:
        runtime.stream = open_stream(*what, kind=stage.data_kind, notice=runtime.notice)
        runtime.data = prepare_beside(runtime.stream, *what, kind=stage.data_kind, notice=runtime.notice, progress=progress)
    else:
        runtime.data = prepare(*what, kind=stage.data_kind, notice=runtime.notice, progress=progress)
    for warning in (*runtime.plan.warnings, *made.warnings, *runtime.data.report.warnings):
        runtime.emit("warning", warning)


def _rows_done(runtime: Runtime, source: str, done: int, total: int | None) -> None:
    if runtime.stop.is_set():
        raise Interrupted("stopped while the data was tokenised; nothing was trained", fix="give the same command again")
    runtime.emit("phase", name="data", source=source, rows=done, of=total)


def _build(runtime: Runtime) -> None:
    """The model with everything on it that the plan names."""
    from transformers import set_seed

    from luthier.core.score_head import pad_apart, pad_with, require_trained_head

    plan = runtime.plan
    runtime.emit("phase", f"loading {plan.model.name}", name="load")
    set_seed(runtime.config.train.seed)
    runtime.meter.start()
    kernel, _ = runtime.method(plan.step("attention"))
    _patch(runtime, "load")
    assert isinstance(kernel, AttentionKernel)
    if kernel.register is not None:
        kernel.register()
    runtime.model = load_model(plan, runtime.notice)
    assert runtime.tokenizer is not None
    stop = stop_at_end_of_turn(runtime.model, runtime.tokenizer)
    if stop is not None:
        runtime.notice(f"{stop} ends an answer of the chat template: generation_config.json names it as an end token too")
    if plan.task == "score":
        for remark in (pad_apart(runtime.tokenizer), pad_with(runtime.model, runtime.tokenizer)):
            if remark:
                runtime.notice(remark)
    _patch(runtime, "loaded")
    adapter, options = runtime.method(plan.step("adapter"))
    assert isinstance(adapter, Adapter)
    runtime.model = call(adapter.attach, runtime.model, plan.profile, options, context=runtime.build_context())
    _patch(runtime, "attached")
    if plan.task == "score":
        require_trained_head(runtime.model, adapter.name)
    trained = sum(parameter.numel() for parameter in runtime.model.parameters() if parameter.requires_grad)
    total = sum(count_parameters(parameter) for parameter in runtime.model.parameters())
    if not trained:
        fix = f"look at its options with `luthier explain {adapter.name}`"
        raise LuthierError(f"adapter: {adapter.name} left no parameter to train", fix=fix)
    text = f"adapter: {adapter.name}, {trained:,} of {total:,} parameters train ({trained / total:.2%})"
    runtime.emit("phase", text, name="attach")


def _patches(runtime: Runtime) -> Iterator[tuple[ModelPatch[Any], Any]]:
    for step in runtime.plan.steps_in("patches"):
        patch, options = runtime.method(step)
        assert isinstance(patch, ModelPatch)
        yield patch, options


def _patch(runtime: Runtime, phase: Phase) -> None:
    for patch, options in _patches(runtime):
        if patch.phase == phase:
            context = runtime.build_context()
            runtime.undo.append(call(patch.apply, runtime.model, runtime.plan.profile, options, context=context))
            runtime.emit("phase", f"patch: {patch.name}", name="patch")


def _train(runtime: Runtime) -> Mapping[str, float]:
    stage, options = runtime.method(runtime.plan.step("stage"))
    assert isinstance(stage, TrainingStage)
    assert runtime.data is not None
    runtime.emit("phase", f"stage: {stage.name}", name="train")
    metrics = stage.run(runtime, options)
    if runtime.stream is not None:
        # Only now is it known what became of its rows.
        runtime.data = PreparedData(runtime.data.train, runtime.data.eval, runtime.stream.report())
        for warning in runtime.data.report.warnings:
            runtime.emit("warning", warning)
    return metrics


def _save(runtime: Runtime, results: dict[str, Any]) -> None:
    """Weights, tokenizer and report appear together, or not at all."""
    runtime.emit("phase", f"saving to {runtime.output.path}", name="save")
    assert runtime.tokenizer is not None
    with runtime.output.publish() as folder:
        runtime.save_model(folder)
        runtime.tokenizer.save_pretrained(str(folder))
        write_report(runtime, results, folder)


def _out_of_memory(runtime: Runtime, error: BaseException) -> OutOfMemoryError:
    lines = str(error).splitlines() or [type(error).__name__]
    weights = runtime.plan.memory.weights / 1024**3
    return OutOfMemoryError(
        f"out of memory outside the training steps ({lines[0]}); the weights alone take {weights:.2f} GiB",
        where=runtime.plan.device,
        fix="free memory on the device, or take a smaller model or `precision: bf16`",
    )


def _undo(runtime: Runtime) -> None:
    """Take every patch back, last first, so that a patched class does not outlive the run.

    One that cannot be taken back leaves the others to be; it is said, and does not hide why the run ended.
    """
    while runtime.undo:
        try:
            runtime.undo.pop()()
        except Exception as error:
            runtime.emit("warning", f"a patch could not be taken back: {type(error).__name__}: {error}")
