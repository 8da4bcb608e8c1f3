"""`luthier merge`: a run's adapter folded into plain weights, with the difference that it made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.cli.text import message_console, parameters, print_json

if TYPE_CHECKING:
    from luthier.core.merging import MergeReport


def run(
    run: Path,
    into: Path | None,
    *,
    base: Literal["original", "dequantized"] | None,
    dtype: Literal["float32", "bfloat16", "float16"] | None,
    tolerance: float | None,
    as_json: bool,
) -> int:
    """Merge and report; what cannot be merged is raised, and printed by the error guard."""
    import luthier

    report = luthier.merge(run, into, base=base, dtype=dtype, tolerance=tolerance, notice=message_console().print)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        print_report(report)
    return 0


def print_report(report: MergeReport) -> None:
    """The end of a merge as a person reads it, on standard output."""
    allowed = f"{report.tolerance:.3%} allowed"
    lines = [
        ("merged", f"{report.adapter} of {report.run} into the {report.base} weights of {report.model}"),
        ("model", f"{parameters(report.parameters)} parameters in {report.dtype}"),
        ("logits", f"differ by at most {report.difference:.3g}, {report.relative:.3%} of the greatest ({allowed})"),
        ("", f"{report.folding:.3g} of this by folding, the rest by rounding to {report.dtype}; {report.tokens} tokens"),
    ]
    if report.from_quantized is not None:
        lines.append(("", f"and by at most {report.from_quantized:.3g} from the model on its quantised weights"))
    lines.append(("written", f"{report.into}/  (transformers loads it; merge.json has the numbers)"))
    for label, text in lines:
        print(f"{label:<9} {text}")
