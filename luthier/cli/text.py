"""Numbers as people read them, and the two consoles: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

# What a terminal would obey instead of showing it; newline and tabulator do no harm.
_CONTROLS: Final = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def size(count: float) -> str:
    """Bytes in binary units: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def parameters(count: float) -> str:
    """134.5M, 4.88M, 960."""
    for bound, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= bound:
            return f"{count / bound:.3g}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """4 s, 2 min 05 s, 1 h 02 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def harmless(text: str) -> str:
    """Somebody else's text for a terminal: control characters are written out, such as \\x1b."""
    return text.translate(_CONTROLS)


def short_path(name: str) -> str:
    """A path in or under the current folder as it is seen from there; any other name as it is."""
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else name


def print_json(document: Any) -> None:
    """Exactly one document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def output_console() -> Any:
    """Rich console on standard output; wide and plain where that is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=False)


def message_console() -> Any:
    """Rich console on standard error."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else 120, highlight=False)
