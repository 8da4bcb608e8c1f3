"""`luthier data clean`: removes tokenised data that no run is using."""

from __future__ import annotations

import dataclasses

from luthier.cli.text import message_console, print_json, size
from luthier.core.data.cache import clean


def run_clean(*, older_than: float | None, dry_run: bool, as_json: bool) -> int:
    """Remove, and say how much; with `dry_run` only say it."""
    cleaned = clean(older_than=older_than, dry_run=dry_run)
    if as_json:
        print_json(dataclasses.asdict(cleaned) | {"dry_run": dry_run})
        return 0
    console = message_console()
    for name in cleaned.in_use:
        console.print(f"in use, and left alone: {name}", highlight=False)
    sources = "source" if cleaned.removed == 1 else "sources"
    done = "would be removed" if dry_run else "removed"
    print(f"{cleaned.removed} tokenised {sources} {done} ({size(cleaned.bytes)}) from {cleaned.folder}; {cleaned.kept} kept")
    return 0
