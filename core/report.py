"""What a reader of the output folder sees first: the loss as a picture, and the model card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from luthier.core.frozen import thaw
from luthier.core.plan import Plan, Step

BLUE: Final = "#2563a8"
RED: Final = "#c2410c"
GIB: Final = 1024**3
RESULTS: Final = {
    "eval_loss": "held-out loss",
    "eval_accuracy": "held-out accuracy",
    "eval_accuracy_longer": "held-out accuracy of choosing the longer answer",
    "eval_margin": "held-out reward margin",
    "eval_reward_before": "held-out reward before training",
    "eval_reward": "held-out reward",
    "kl": "KL to the reference, of an answer (nats)",
    "eval_perplexity": "held-out perplexity",
    "eval_exact_match": "held-out exact match (0 to 1)",
    "eval_rouge1": "held-out ROUGE-1 (0 to 1)",
    "eval_rouge2": "held-out ROUGE-2 (0 to 1)",
    "eval_rougeL": "held-out ROUGE-L (0 to 1)",
    "eval_bleu": "held-out BLEU (0 to 100)",
    "eval_unfinished": "part of held-out answers cut short",
    "best_step": "the best evaluation, of which these weights are, at step",
    "ended_early": "ended early",
    "train_loss": "mean training loss",
    "steps": "optimizer steps",
    "tokens": "tokens seen",
    "trained_tokens": "tokens learned",
    "tokens_per_second": "tokens per second",
    "trained_tokens_per_second": "learned tokens per second",
    "train_seconds": "training time (s)",
    "trained_parameters": "trained parameters",
    "parameters": "parameters",
}

TAKEN_UP: Final = {"whole": "a whole model", "merge": "merged", "stack": "kept below"}
COUNTED: Final = {"dropped": "left out", "cut": "cut", "added": "added", "notes": "with a remark"}


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window` - 1 before it."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    starts = [max(0, end - window) for end in range(1, len(sums))]
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, 1)]


def plot_losses(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw the training loss, its running mean and the held-out loss over optimizer steps into a PNG at `path`.

    `records` are the lines of metrics.jsonl. Drawn without a display (Agg).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kept = list(records)
    train = [(record["step"], record["loss"]) for record in kept if record.get("event") == "step"]
    evaluations = (record for record in kept if record.get("event") == "evaluate")
    held_out = [(record["step"], record["loss"]) for record in evaluations if "loss" in record]
    figure = Figure(figsize=(7.2, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        steps, losses = zip(*train, strict=True)
        window = max(1, len(train) // 20)
        many = window > 1
        axes.plot(steps, losses, color=BLUE, linewidth=1.0, alpha=0.35 if many else 1.0, label="training loss")
        if many:
            label = f"training loss, mean of {window} reports"
            axes.plot(steps, smoothed(losses, window), color=BLUE, linewidth=1.8, label=label)
    if held_out:
        steps, losses = zip(*held_out, strict=True)
        axes.plot(steps, losses, color=RED, linewidth=1.0, marker="o", markersize=5, label="held-out loss")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if train or held_out:
        axes.legend(frameon=False)
    figure.savefig(path)


def model_card(plan: Plan, results: Mapping[str, Any], *, license: str | None = None) -> str:
    """README.md of the output folder: front matter for the Hugging Face hub, what was trained, on what, with what result.

    `results` is the content of all_results.json; `license` an identifier of the hub ("apache-2.0"), where it is known.
    """
    detachable = "adapter.detachable" in plan.traits
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(plan, detachable, license), sort_keys=False, allow_unicode=True)}---",
        f"# {plan.model.origin.name.rstrip('/').rsplit('/', 1)[-1]}, trained with Luthier",
        _summary(plan, detachable),
        f"## Use\n\n{_before_use(plan, detachable)}```python\n{_usage(plan, detachable)}\n```",
        f"## Method\n\n{_steps(plan.steps)}\n\nPrecision: {plan.precision.name}, because {plan.precision.why}.",
        f"## Data\n\n{_data(plan, results.get('data', {}))}",
        f"## Results\n\n{_results(plan, results)}",
        "`plan.json` and `config.yaml` say the rest: `luthier train config.yaml output=elsewhere` repeats the run.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(plan: Plan, detachable: bool, license: str | None) -> dict[str, Any]:
    stage, adapter = plan.step("stage").method, plan.step("adapter").method
    matter: dict[str, Any] = {"library_name": "peft" if detachable else "transformers"}
    if plan.model.origin.kind == "hub":
        matter["base_model"] = plan.model.origin.name
    if license:
        matter["license"] = license
    kind = "text-generation" if plan.task == "causal" else "text-classification"
    return matter | {"pipeline_tag": kind, "tags": ["luthier", stage, adapter]}


def _summary(plan: Plan, detachable: bool) -> str:
    stage, adapter = plan.step("stage").method, plan.step("adapter").method
    left = "an adapter for" if detachable else "a whole model, trained from"
    foot = plan.model.foot
    base = f"`{foot.name}`" + (f" (revision `{foot.revision}`)" if foot.revision else "")
    if foot.former is not None:
        base = f"what the run {base} left"
    return (
        f"This is {left} {base}, a {plan.profile.architecture} of {plan.profile.parameters:,} parameters. "
        f"Stage: `{stage}`; adapter: `{adapter}`.{_chain(plan)}"
    )


def _chain(plan: Plan) -> str:
    """The runs that this one comes from, first to last, each with the way in which the next one took it up."""
    runs = [f"`{plan.step('stage').method}`"]
    model = plan.model
    while (former := model.former) is not None:
        runs.append(f"`{former.stage}` with `{former.adapter}` ({TAKEN_UP[former.how]})")
        model = former.base
    return f" Trained in stages: {' -> '.join([f'`{model.name}`', *reversed(runs)])}." if len(runs) > 1 else ""


def _before_use(plan: Plan, detachable: bool) -> str:
    """For an adapter whose base model was made another first: what is to be done before the code under it fits."""
    if not detachable:
        return ""
    former = plan.model.foot.former
    if former is not None and former.how == "merge":
        return (
            "The model that this adapter is for is an earlier run's, merged, and lies in Luthier's cache where it was "
            "trained. `luthier merge path/to/this/folder` leaves a model that loads by itself, which is what to hand on.\n\n"
        )
    if "base.changed" not in plan.traits:
        return ""
    patches = ", ".join(f"`{step.method}`" for step in plan.steps_in("patches"))
    return (
        f"The base model was changed before it was trained (patches: {patches}), and has to be changed in the same way "
        "before this adapter is put on it. `luthier merge path/to/this/folder` does that, and leaves a model that loads by "
        "itself.\n\n"
    )


def _usage(plan: Plan, detachable: bool) -> str:
    scores = plan.task == "score"
    auto, more = ("AutoModelForSequenceClassification", ", num_labels=1") if scores else ("AutoModelForCausalLM", "")
    lines = [f"from transformers import {auto}, AutoTokenizer"]
    load = f'{auto}.from_pretrained("path/to/this/folder")'
    if detachable:
        lines.append("from peft import PeftModel")
        foot = plan.model.foot
        base = repr(foot.name if foot.kind == "hub" else foot.path).replace("'", '"')
        extra = (f', gguf_file="{foot.gguf_file}"' if foot.gguf_file else "") + more
        load = f'PeftModel.from_pretrained({auto}.from_pretrained({base}{extra}), "path/to/this/folder")'
    lines += ['tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")', f"model = {load}"]
    if scores:
        lines += [
            "model.config.pad_token_id = tokenizer.pad_token_id  # the score is read at the last token that is another",
            'inputs = tokenizer("a conversation in the chat template", return_tensors="pt")',
            "score = model(**inputs).logits[:, 0]  # of several rows in a batch: padded on the right",
        ]
    return "\n".join(lines)


def _steps(steps: Iterable[Step]) -> str:
    rows = ["| slot | method | provider | options |", "|---|---|---|---|"]
    for step in steps:
        options = ", ".join(f"{key}={_cell(value)}" for key, value in thaw(step.config).items())
        rows.append(f"| {step.slot} | `{step.method}` | {step.provider} | {options or 'none'} |")
    return "\n".join(rows)


def _cell(value: Any) -> str:
    text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _data(plan: Plan, report: Mapping[str, Any]) -> str:
    rows = ["| source | role | format | rows |", "|---|---|---|---|"]
    for source in plan.data:
        count = "streamed" if source.rows is None else f"{source.rows:,}"
        rows.append(f"| `{_cell(source.path)}` | {source.role} | {source.format} | {count} |")
    text = "\n".join(rows)
    facts = [
        f"{key.replace('_', ' ')}: {_number(value)}"
        for key, value in report.items()
        if isinstance(value, int | float | str) and value != ""
    ]
    if facts:
        text += "\n\n" + "; ".join(facts) + "."
    for key, words in COUNTED.items():
        counts = [f"{reason}: {count:,}" for reason, count in dict(report.get(key) or {}).items()]
        text += f"\n\nRows {words}: {'; '.join(counts)}." if counts else ""
    return text


def _results(plan: Plan, results: Mapping[str, Any]) -> str:
    rows = ["| | |", "|---|---|"]
    rows += [f"| {words} | {_number(results[key])} |" for key, words in RESULTS.items() if results.get(key) is not None]
    memory = results.get("memory") or {}
    if memory.get("measured_peak"):
        rows.append(f"| peak memory, measured | {memory['measured_peak'] / GIB:.2f} GiB ({memory.get('measured_is', '')}) |")
    rows.append(f"| peak memory, predicted | {plan.memory.peak / GIB:.2f} GiB |")
    versions = ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items())
    text = "\n".join(rows) + "\n\n![Training loss](training_loss.png)"
    return text + (f"\n\nMade with {versions}." if versions else "")


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 100 else f"{value:,.0f}"
