"""`luthier methods --matrix MODEL`: every adapter x quantisation x optimizer, whether it combines, and why not."""

from __future__ import annotations

from typing import Any, Final

from luthier.cli.text import message_console, output_console, print_json
from luthier.core.plan import ModelReference
from luthier.core.profile import ArchitectureProfile
from luthier.core.resolve.matrix import Cell, Matrix, combinations, describe, footnotes, reasons
from luthier.core.resolve.resolver import EXPERIMENTAL

MARKS: Final = {"yes": "yes", "experimental": "exp."}


def run(model: str, *, as_json: bool, trust_remote_code: bool = False) -> int:
    """Print the matrix of one model on this machine; returns the exit code."""
    import luthier.api
    from luthier.core.config import ModelConfig
    from luthier.registry.catalog import discover
    from luthier.registry.environment import read_environment

    catalog = discover()
    wanted = ModelConfig(name=model, trust_remote_code=trust_remote_code)
    reference, profile = luthier.api.read_model(wanted, catalog)
    environment = read_environment()
    matrix = combinations(model=reference, profile=profile, environment=environment, catalog=catalog)
    if as_json:
        print_json(
            {
                "model": model,
                "model_type": profile.model_type,
                "device": environment.device,
                "adapters": list(matrix.adapters),
                "quantisations": list(matrix.quantisations),
                "optimizers": list(matrix.optimizers),
                "cells": list(describe(matrix)),
            }
        )
    else:
        show(matrix, reference, profile, environment.device, output_console())
        for broken in catalog.broken:
            message_console().print(f"left out, because its plugin is broken: {broken.provider.plugin} ({broken.error})")
    return 0


def show(matrix: Matrix, model: ModelReference, profile: ArchitectureProfile, device: str, console: Any) -> None:
    """One table for each quantisation; numbers lead to the reasons below."""
    from rich.table import Table
    from rich.text import Text

    possible = sum(cell.possible for cell in matrix.cells)
    head = f"{model.name} ({profile.model_type}) on {device}: {possible} of {len(matrix.cells)} combinations can be run"
    console.print(Text(head, style="bold"))
    numbers = footnotes(matrix.cells)
    for quantisation in matrix.quantisations:
        console.print(Text(f"\nquantisation: {quantisation}", style="bold"))
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=True)
        table.add_column("optimizer")
        for adapter in matrix.adapters:
            table.add_column(adapter)
        for optimizer in matrix.optimizers:
            cells = [matrix.cell(adapter, quantisation, optimizer) for adapter in matrix.adapters]
            table.add_row(optimizer, *(Text(mark(cell, numbers), style=_style(cell)) for cell in cells))
        console.print(table)
    console.print(
        Text("\nA number is a reason why not; in brackets where only a package or a device is missing. exp.: see the end.")
    )
    notes = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for why, number in numbers.items():
        notes.add_row(str(number), Text(why))
    console.print(notes)
    doubts = dict.fromkeys(warning for cell in matrix.cells for warning in cell.warnings if EXPERIMENTAL in warning)
    for warning in doubts:
        console.print(Text(f"exp. {warning}"))


def mark(cell: Cell, numbers: dict[str, int]) -> str:
    """What stands in the table: yes, exp., or the numbers of the reasons, in brackets where only something is missing."""
    if cell.possible:
        return MARKS[cell.outcome]
    text = " ".join(str(numbers[reason]) for reason in reasons(cell))
    return f"({text})" if cell.outcome == "missing" else text


def _style(cell: Cell) -> str:
    return {"yes": "green", "experimental": "yellow", "missing": "yellow", "no": "dim"}[cell.outcome]
