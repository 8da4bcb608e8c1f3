"""`luthier plan`: what a run would do, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.cli.text import output_console, parameters, print_json, short_path, size
from luthier.core.plan import DataLook, FormerRun, Plan, Step
from luthier.core.references import WORDS


def run(config: Path, overrides: list[str], *, as_json: bool) -> int:
    """Plan and print; a refused plan is raised, and printed by the error guard."""
    import luthier

    made = luthier.plan(luthier.load_config(config, overrides))
    if as_json:
        print_json(made.to_plain())
    else:
        show_plan(made, output_console())
    return 0


def show_plan(plan: Plan, console: Any) -> None:
    """The plan as a person reads it: model, steps with reasons, precision, memory, what was rejected, warnings."""
    from rich.table import Table
    from rich.text import Text

    profile = plan.profile
    attention = ", ".join(sorted({group.kind for group in profile.attention})) or "no attention"
    described = f"{profile.architecture}, {parameters(profile.parameters)} parameters, {profile.layers} layers, {attention}"
    console.print(
        Text.assemble(
            ("Plan ", "bold"), (plan.hash, "cyan"), f"  {short_path(plan.model.name)}  ({described}) on {plan.device}"
        )
    )
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="bold")
    for heading in ("slot", "method", "options", "why"):
        table.add_column(heading, overflow="fold")
    model = plan.model
    while model.former is not None:
        former = model.former
        table.add_row("model", Text(former.how, style="green"), _former(former), Text(former.why))
        model = former.base
    for step in plan.steps:
        table.add_row(step.slot, Text(step.method, style="green"), Text(_options(step)), Text(step.why))
        if step.reference is not None:
            table.add_row("reference", Text(step.reference, style="green"), "", Text(WORDS[step.reference]))
    table.add_row("precision", Text(plan.precision.name, style="green"), "", Text(plan.precision.why))
    for source in plan.data:
        rows = f"{source.rows:,} rows" if source.rows is not None else "streamed"
        role = "data" if source.role == "train" else "held out"
        table.add_row(role, Text(source.format, style="green"), f"{rows}, {source.kind}", Text(source.path))
    console.print(table)
    if plan.data_look is not None:
        console.print(Text.assemble(("tokens  ", "bold"), looked(plan.data_look)))
    memory = plan.memory
    console.print(
        f"memory (predicted)  weights {size(memory.weights)}, gradients {size(memory.gradients)}, "
        f"optimizer {size(memory.optimizer)}, activations {size(memory.activations)}: peak {size(memory.peak)}"
    )
    for entry in plan.rejected:
        console.print(Text.assemble(("not taken  ", "dim"), f"{entry.slot}: {entry.method}: {entry.reason}"))
    for warning in (*plan.warnings, *(plan.data_look.warnings if plan.data_look else ())):
        console.print(Text.assemble(("warning  ", "yellow"), warning))


def _former(former: FormerRun) -> str:
    """A run that the model comes from, in a few words."""
    return f"{short_path(former.folder)}: {former.stage} with {former.adapter} on {short_path(former.base.name)}"


def looked(look: DataLook) -> str:
    """What became of the first rows, in one sentence."""
    whole = f"all {look.rows:,} rows" if look.rows > 1 else "the only row"
    rows = whole if look.whole else f"the first {look.rows:,} rows"
    counts = [f"{look.kept:,} kept"]
    for verb, reasons in (("dropped", look.dropped), ("cut", look.cut), ("added", look.added), ("noted", look.notes)):
        counts += [f"{count:,} {verb} ({reason})" for reason, count in reasons.items()]
    template = f"; chat template: {look.template}" if look.template else ""
    return (
        f"{rows}: {', '.join(counts)}; {look.tokens:,} tokens, {look.trained_tokens:,} learned, "
        f"by {look.labels_from}{template}"
    )


def _options(step: Step) -> str:
    """Options of a step on one line; a long value is cut, the whole is in --json."""
    shown = []
    for key, value in step.config.items():
        if isinstance(value, tuple):
            text = f"[{', '.join(map(str, value))}]"
        else:
            text = str(dict(value) if isinstance(value, Mapping) else value)
        shown.append(f"{key}={text if len(text) < 40 else text[:37] + '...'}")
    return ", ".join(shown)
