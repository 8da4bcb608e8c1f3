"""Generated blocks inside hand-written pages: what stands between two markers is made by a renderer, the rest is left alone.

    <!-- options:begin adapter lora -->
    ...made by the renderer `options` with the words "adapter", "lora"...
    <!-- options:end -->

A page can so be read on GitHub as it is, and a test can say whether it fell behind the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

Renderer = Callable[[Path, list[str]], str]

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- (?P<name>\w+):begin(?P<words>[^>]*?) -->\n(?P<body>.*?)<!-- (?P=name):end -->", re.DOTALL)
HAND_FILLED = frozenset({"demo"})  # a long run's output, pasted by whoever made the run


def refresh(page: Path, text: str, renderers: Mapping[str, Renderer]) -> str:
    """`text` of `page` with every block made anew; raises KeyError for a block that nothing renders."""

    def render(match: re.Match[str]) -> str:
        name = match["name"]
        if name in HAND_FILLED:
            return match[0]
        if name not in renderers:
            raise KeyError(f"{page}: nothing renders the block {name!r}; there are: {', '.join(sorted(renderers))}")
        body = renderers[name](page, match["words"].split()).strip("\n")
        return f"<!-- {name}:begin{match['words']} -->\n{body}\n<!-- {name}:end -->"

    return BLOCK.sub(render, text)


def pages() -> list[Path]:
    """README.md and every page under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a bar or a line break inside a cell is escaped."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, ["---"] * len(headings), *cells])
