"""The lengths of the rows as a picture, drawn without a display."""

from __future__ import annotations

from pathlib import Path

from luthier.core.data.inspect.measure import Inspection
from luthier.core.report import BLUE, RED


def plot_lengths(inspection: Inspection, path: Path, *, max_length: int) -> None:
    """A PNG at `path`: how many sequences have how many tokens, and where `data.max_length` is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = inspection.lengths
    figure = Figure(figsize=(7.2, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = lengths.edges[1] - lengths.edges[0]
    axes.bar(lengths.edges[:-1], lengths.counts, width=width, align="edge", color=BLUE, edgecolor="white", linewidth=0.6)
    axes.axvline(lengths.median, color="#111827", linewidth=1.2, linestyle="--", label=f"median {lengths.median:,.0f}")
    if max_length <= lengths.edges[-1]:
        axes.axvline(max_length, color=RED, linewidth=1.4, label=f"data.max_length {max_length:,}")
    axes.set_xlabel("tokens")
    axes.set_ylabel("sequences")
    axes.set_xlim(0, lengths.edges[-1])
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
