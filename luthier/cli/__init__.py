"""The `luthier` command. Verbs are in app.py; each imports what it needs when it runs, so that `--help` stays quick."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.core.catalog import Offer
    from luthier.core.extensions import Command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors are one message on standard error, without a traceback."""
    from luthier.cli.errors import guarded

    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(words, _dispatch)


def _dispatch(words: list[str]) -> int:
    from luthier.cli.app import VERBS, build_app
    from luthier.core.errors import ExitCode

    verb = next((word for word in words if not word.startswith("-")), "")
    plugin_verbs: Mapping[str, Offer[Command]] = {}
    if verb not in VERBS:
        from luthier.registry.catalog import discover

        # Verbs of plugins are looked up only when no built-in one was asked for.
        catalog = discover()
        plugin_verbs = catalog.commands
        if verb in plugin_verbs or catalog.broken_for("command", verb):
            return catalog.command(verb).run(words[words.index(verb) + 1 :])
    result = build_app(plugin_verbs)(args=words, prog_name="luthier", standalone_mode=False)
    if result == ExitCode.INTERRUPTED:  # what typer makes of a KeyboardInterrupt, without a word
        raise KeyboardInterrupt
    return int(result or 0)
