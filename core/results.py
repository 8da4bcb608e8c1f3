"""What a run writes about itself: its description before it trains, its results and report after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luthier.core.environment import Environment
from luthier.core.errors import ConfigError, OutputError
from luthier.core.frozen import thaw
from luthier.core.output import OutputFolder
from luthier.core.plan import Plan
from luthier.core.quantized import count_parameters
from luthier.core.report import model_card, plot_losses
from luthier.core.serial import to_plain

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


def write_description(output: OutputFolder, plan: Plan, environment: Environment) -> None:
    """config.yaml (resolved: it runs as it stands), plan.json and environment.json."""
    output.write_text("config.yaml", yaml.safe_dump(thaw(plan.config), sort_keys=False, allow_unicode=True))
    output.write_text("plan.json", plan.to_json() + "\n")
    output.write_json("environment.json", to_plain(environment))


def assert_same_run(output: OutputFolder, plan: Plan) -> None:
    """A run is continued only with what decides its results unchanged; raises ConfigError naming each difference."""
    path = output.path / "plan.json"
    try:
        before = Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"the plan of the run to resume cannot be read: {error}", where=str(path)) from None
    if before.hash == plan.hash:
        return
    changed = differences(_decisive(before), _decisive(plan)) or ["the model"]
    raise ConfigError(
        f"this is not the run that was interrupted; changed: {'; '.join(changed)}",
        where=str(output.path),
        fix="resume with the same configuration (its config.yaml has it), or start anew with --overwrite",
    )


def _decisive(plan: Plan) -> dict[str, Any]:
    former = plan.model.former
    return plan.decisive_config() | {
        # A merged model's path is a hash: what it is made from says more.
        "model_path": None if former and former.how == "merge" else plan.model.path,
        "what the former run trained": former and former.content,
        "methods": [f"{step.slot}: {step.method} ({step.provider})" for step in plan.steps],
    }


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`adapter.rank: 8 became 16`, for every leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {old!r} became {new!r}"]


def collect_results(
    runtime: Runtime, metrics: Mapping[str, float], *, seconds: float, observer_errors: int
) -> dict[str, Any]:
    """The content of all_results.json: the stage's metrics, memory predicted and measured, and the data report."""
    from importlib.metadata import version

    plan = runtime.plan
    assert runtime.data is not None
    assert runtime.model is not None
    parameters = list(runtime.model.parameters())
    trained = runtime.trained_parameters
    if trained is None:
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {
        "stage": plan.step("stage").method,
        "methods": {step.slot: step.method for step in plan.steps if step.slot != "patches"}
        | {"patches": [step.method for step in plan.steps_in("patches")]},
        "model": plan.model.name,
        **_finite(runtime, metrics),
        "ended_early": runtime.ended_early,
        "trained_parameters": trained,
        "parameters": sum(count_parameters(parameter) for parameter in parameters),
        "seconds": round(seconds, 3),
        "memory": {
            "predicted": to_plain(plan.memory),
            "measured_peak": runtime.meter.peak,
            "measured_is": "allocated on the device" if plan.device.startswith("cuda") else "resident in the process",
        },
        "precision": to_plain(plan.precision),
        "data": to_plain(runtime.data.report),
        "resumed_from": runtime.resume_from.name if runtime.resume_from else None,
        "observer_errors": observer_errors,
        "plan_hash": plan.hash,
        "output": str(runtime.output.path),
        "versions": {name: version(name) for name in ("luthier", "torch", "transformers", "peft")},
    }


def _finite(runtime: Runtime, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that JSON can hold: one that is no number is said and left out, because the weights are still to save."""
    lost = [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
    for name in lost:
        runtime.emit("warning", f"the metric {name} is {metrics[name]}; all_results.json leaves it out")
    return {name: value for name, value in metrics.items() if name not in lost}


def write_report(runtime: Runtime, results: Mapping[str, Any], folder: Path) -> None:
    """all_results.json, training_loss.png and the model card, into the folder that is about to be published."""
    import json

    plot_losses(runtime.output.metrics(), folder / "training_loss.png")
    (folder / "README.md").write_text(model_card(runtime.plan, results), encoding="utf-8")
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "all_results.json").write_text(text + "\n", encoding="utf-8")
