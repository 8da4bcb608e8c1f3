"""An inspection as one HTML page without links to anything: rows with their trained tokens marked, counts, lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.atomic import write_text
from luthier.core.data.inspect.measure import Inspection


def write_page(inspection: Inspection, path: Path, *, title: str) -> None:
    """Write the page; everything that comes from the data is escaped. Raises OSError where it cannot be written."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    surroundings = Environment(
        loader=PackageLoader("luthier.core.data.inspect", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = surroundings.get_template("page.html.jinja")
    text = template.render(title=title, inspection=inspection, bars=_bars(inspection), account=account(inspection))
    write_text(path, text)


def account(inspection: Inspection) -> list[tuple[str, str]]:
    """What became of the rows: label and count, in the order of the way that rows go."""
    report = inspection.report
    lines = [("read", report.rows)]
    lines += [(f"added: {reason}", count) for reason, count in report.added.items()]
    lines += [(f"dropped: {reason}", count) for reason, count in report.dropped.items()]
    lines += [(f"cut: {reason}", count) for reason, count in report.cut.items()]
    lines += [("held out", report.held_out), ("to train on", report.kept)]
    lines += [("repeats of another row", report.duplicates)]
    lines += [(f"noted: {remark}", count) for remark, count in report.notes.items()]
    return [(label, f"{count:,}") for label, count in lines]


def _bars(inspection: Inspection) -> list[dict[str, Any]]:
    """The histogram's bars in percent of the picture's width and height."""
    lengths = inspection.lengths
    most = max(lengths.counts)
    share = 100 / len(lengths.counts)
    return [
        {
            "left": place * share,
            "width": share * 0.92,
            "height": 100 * count / most,
            "title": f"{lengths.edges[place]:,} to {lengths.edges[place + 1] - 1:,} tokens: {count:,}",
        }
        for place, count in enumerate(lengths.counts)
    ]
