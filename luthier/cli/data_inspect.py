"""`luthier data inspect`: the rows as they will be trained, and what became of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from luthier.cli.text import harmless, message_console, output_console, print_json
from luthier.core.data.inspect import Inspection, ShownRow
from luthier.core.errors import OutputError

TRAINED: Final = "black on green"
BAR: Final = 40


def run(
    config: Path, overrides: list[str], *, rows: int, as_json: bool, html: Path | None = None, png: Path | None = None
) -> int:
    """Prepare the data, print what there is to say about it, and write the page and the picture that were asked for."""
    import luthier
    from luthier.core.data.inspect.page import write_page
    from luthier.core.data.inspect.picture import plot_lengths
    from luthier.core.serial import to_plain

    console = message_console()
    if png is not None and png.suffix.lower() != ".png":
        raise OutputError("is no name of a PNG picture", where=str(png), fix="let it end in .png")
    loaded = luthier.load_config(config, overrides)
    inspection = luthier.inspect_data(loaded, rows=rows, notice=lambda text: console.print(text, highlight=False))
    title = f"The data of {config.name}"
    _write(html, lambda path: write_page(inspection, path, title=title), console)
    _write(png, lambda path: plot_lengths(inspection, path, max_length=loaded.data.max_length), console)
    if as_json:
        print_json(to_plain(inspection))
    else:
        show(inspection, output_console(), max_length=loaded.data.max_length)
    return 0


def _write(path: Path | None, write: Callable[[Path], None], console: Any) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        message = f"cannot be written: {error.strerror or error}"
        raise OutputError(message, where=str(path), fix="name another file") from error
    console.print(f"written: {path}", highlight=False)


def show(inspection: Inspection, console: Any, *, max_length: int) -> None:
    """An inspection on the terminal; learned tokens have a coloured background there, and stand in ⟦ ⟧ elsewhere."""
    from rich.table import Table
    from rich.text import Text

    from luthier.core.data.inspect.page import account

    for row in inspection.rows:
        show_row(row, console)
    report, lengths, batching = inspection.report, inspection.lengths, inspection.batching
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, rows in account(inspection):
        table.add_row(Text(label), rows)
    console.print(Text("rows", style="bold"))
    console.print(table)
    sources = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("source", "format", "rows", "kept"):
        sources.add_column(heading, overflow="fold", justify="right" if heading in ("rows", "kept") else "left")
    for source in report.sources:
        sources.add_row(Text(source.name), Text(source.format, style="green"), f"{source.rows:,}", f"{source.kept:,}")
    console.print(sources)
    template = f"; chat template: {report.template}" if report.template else ""
    learned = (
        f"{report.tokens:,} tokens, {report.trained_tokens:,} of them learned; labels from {report.labels_from}{template}"
    )
    console.print(Text.assemble(("tokens  ", "bold"), learned))
    console.print(
        Text.assemble(
            ("lengths  ", "bold"),
            f"shortest {lengths.shortest:,}, median {lengths.median:,.0f}, 95 of 100 at most {lengths.percentile_95:,.0f}, "
            f"longest {lengths.longest:,}; max_length {max_length:,}",
        )
    )
    most = max(lengths.counts)
    for begin, end, count in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        bar = "█" * round(BAR * count / most) or ("▏" if count else "")
        console.print(Text.assemble(f"{begin:>7,} ..{end - 1:>7,}  ", (bar, "blue"), f" {count:,}" if count else ""))
    padded = f"{batching.padded_batches:,} padded ({1 - batching.padding:.1%} filled)"
    packed = f"{batching.packed_batches:,} packed ({batching.efficiency:.1%} filled)"
    chosen = "packed" if batching.packing else "padded"
    console.print(
        Text.assemble(
            ("an epoch  ", "bold"),
            f"{padded} or {packed} micro-batches of {batching.batch_tokens:,} tokens; this configuration: {chosen}",
        )
    )
    for one in inspection.repeated:
        console.print(Text.assemble(("repeated  ", "bold"), f"{one.times} times: {harmless(one.beginning)} ..."))
    for warning in report.warnings:
        console.print(Text.assemble(("warning  ", "yellow"), warning))


def show_row(row: ShownRow, console: Any) -> None:
    """One training row, learned tokens marked."""
    from rich.text import Text

    for sequence in row.sequences:
        name = f", {sequence.name}" if sequence.name else ""
        value = f", value {row.value:g}" if row.value is not None else ""
        heading = f"row {row.number}{name}{value}  ({sequence.tokens:,} tokens, {sequence.trained:,} learned)"
        console.print(Text(heading, style="bold"))
        text = Text()
        for run in sequence.runs:
            written = harmless(run.text)
            if not run.trained:
                text.append(written)
            elif console.is_terminal:
                text.append(written, style=TRAINED)
            else:
                text.append(f"⟦{written}⟧")
        console.print(text, end="\n\n")
    if row.reference is not None:
        console.print(Text.assemble(("reference  ", "bold"), harmless(row.reference)), end="\n\n")
