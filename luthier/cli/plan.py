"""`luthier plan`: what a run would do, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.cli.text import output_console, parameters, print_json, size
from luthier.core.plan import Plan


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
    console.print(
        Text.assemble(("Plan ", "bold"), (plan.hash, "cyan"), f"  {plan.model.name}  ({profile.architecture}, ")
        + Text(f"{parameters(profile.parameters)} parameters, {profile.layers} layers, {attention}) on {plan.device}")
    )
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="bold")
    for heading in ("slot", "method", "options", "why"):
        table.add_column(heading, overflow="fold")
    for step in plan.steps:
        table.add_row(step.slot, Text(step.method, style="green"), _options(plan, step.slot, step.method), step.why)
    table.add_row("precision", Text(plan.precision.name, style="green"), "", plan.precision.why)
    for source in plan.data:
        rows = f"{source.rows:,} rows" if source.rows is not None else "stream"
        table.add_row("data" if source.role == "train" else "held out", Text(source.format, style="green"), f"{rows}, {source.kind}", source.path)
    console.print(table)
    memory = plan.memory
    console.print(
        f"memory (predicted)  weights {size(memory.weights)}, gradients {size(memory.gradients)}, optimizer {size(memory.optimizer)}, "
        f"activations {size(memory.activations)}: peak {size(memory.peak)}"
    )
    for entry in plan.rejected:
        console.print(Text.assemble(("not taken  ", "dim"), f"{entry.slot}: {entry.method}: {entry.reason}"))
    for warning in plan.warnings:
        console.print(Text.assemble(("warning  ", "yellow"), warning))


def _options(plan: Plan, slot: str, method: str) -> str:
    """Options of a step; a list of four or more is cut, the whole is in --json."""
    step = next(step for step in plan.steps if step.slot == slot and step.method == method)
    shown = []
    for key, value in step.config.items():
        text = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
        shown.append(f"{key}={text if len(text) < 40 else text[:37] + '...'}")
    return ", ".join(shown)
