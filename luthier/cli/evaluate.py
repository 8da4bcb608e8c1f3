"""`luthier evaluate`: how well a run does on rows that it has not seen, alone or beside another model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.cli.text import duration, harmless, message_console, output_console, print_json

if TYPE_CHECKING:
    from luthier.core.evaluation.measure import Evaluation

MEANINGS: Final = {
    "loss": "nats per token",
    "perplexity": "exp(loss)",
    "tokens": "of the loss",
    "exact_match": "of 1",
    "rouge1": "F1, of 1",
    "rouge2": "F1, of 1",
    "rougeL": "F1, of 1",
    "bleu": "of 100",
    "unfinished": "answers cut short, of 1",
    "accuracy": "chosen before rejected, of 1",
    "margin": "chosen less rejected",
    "longer": "picking the longer, of 1",
}


def run(
    run: str,
    data: Sequence[str],
    *,
    metrics: Sequence[str],
    against: str | None,
    format_name: str,
    max_rows: int | None,
    max_new_tokens: int,
    output: Path | None,
    as_json: bool,
) -> int:
    """Evaluate and report; what cannot be evaluated is raised, and printed by the error guard."""
    import luthier
    from luthier.core.serial import to_plain

    console = message_console()
    found = luthier.evaluate(
        run,
        data,
        metrics=metrics,
        against=against,
        format=format_name,
        max_rows=max_rows,
        max_new_tokens=max_new_tokens,
        predictions=output,
        notice=lambda text: console.print(text, highlight=False, markup=False),
    )
    if as_json:
        print_json(to_plain(found))
    else:
        show(found, output_console())
    return 0


def show(found: Evaluation, console: Any) -> None:
    """The evaluation as a person reads it: a table, and under it what the numbers are about."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("metric")
    # As texts: a name in brackets is no markup.
    table.add_column(Text(harmless(found.run)), justify="right", overflow="fold")
    if found.against is not None:
        table.add_column(Text(harmless(found.against["run"])), justify="right", overflow="fold")
        table.add_column("difference", justify="right")
    table.add_column("")
    for name, value in found.metrics.items():
        cells = [name, number(value)]
        if found.against is not None:
            other, difference = found.against["metrics"].get(name), (found.difference or {}).get(name)
            cells += [number(other), "" if difference is None else f"{difference:+.4f}"]
        table.add_row(*map(Text, cells), Text(MEANINGS.get(name, ""), style="dim"))
    console.print(table)
    console.print()
    for label, text in account(found):
        console.print(Text.assemble((f"{label:<9} ", "bold"), harmless(text)), soft_wrap=True)


def account(found: Evaluation) -> list[tuple[str, str]]:
    """What was evaluated and what was not."""
    lines = [("rows", f"{found.rows:,} of {', '.join(found.data)}: {found.kind} data")]
    lines += [("left out", f"{reason}: {count:,}") for reason, count in found.left_out.items()]
    lines += [("cut", f"{reason}: {count:,}") for reason, count in found.cut.items()]
    if found.answers is not None:
        asked = f"{found.answers['rows']:,} generated, greedy, at most {found.answers['max_new_tokens']:,} tokens each"
        lines.append(("answers", asked))
        lines += [("not asked", f"{reason}: {count:,}") for reason, count in found.answers["left_out"].items()]
    lines.append(("computed", f"in {found.precision} on the {found.device}, in {duration(found.seconds)}"))
    if found.predictions is not None:
        lines.append(("written", found.predictions))
    return lines


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
