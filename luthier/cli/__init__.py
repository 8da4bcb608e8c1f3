"""The `luthier` command. Verbs are in app.py; each imports what it needs when it runs, so that `--help` stays quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; errors are one message on standard error, without a traceback."""
    from luthier.cli.errors import guarded

    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(words, _dispatch)


def _dispatch(words: list[str]) -> int:
    from luthier.cli.app import VERBS, build_app

    verb = next((word for word in words if not word.startswith("-")), None)
    plugin_verbs = _plugin_verbs() if verb not in VERBS else {}
    if verb in plugin_verbs:
        return plugin_verbs[verb].value.run(words[words.index(verb) + 1 :])
    result = build_app(plugin_verbs)(args=words, standalone_mode=False)
    return int(result or 0)


def _plugin_verbs():  # type: ignore[no-untyped-def]
    """Verbs that plugins bring, by name; looked up only when no built-in verb was asked for."""
    from luthier.registry.catalog import discover

    return discover().commands
