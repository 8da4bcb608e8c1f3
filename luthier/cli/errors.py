"""What the command line does with an error: a message, the right exit code, and with `--json` one document all the same."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable

from luthier.core.errors import ExitCode, LuthierError, PlanRefused
from luthier.core.serial import to_plain


def guarded(words: list[str], run: Callable[[list[str]], int]) -> int:
    """Run, and turn every error into an exit code. `--debug` anywhere among the words shows tracebacks."""
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    as_json = "--json" in words
    try:
        return run(words)
    except LuthierError as error:
        code = int(getattr(error, "code", error.exit_code))
        if debug:
            traceback.print_exception(error)
        report(error, code, as_json)
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`luthier methods | head`): nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error, debug)


def _unexpected(error: Exception, debug: bool) -> int:
    import typer

    # Newer releases of typer carry click inside; the class is the same by name, not by identity.
    usage = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, typer.Abort):
        return ExitCode.INTERRUPTED
    if isinstance(error, usage):
        error.show()  # type: ignore[attr-defined]
        return ExitCode.REFUSED
    if debug:
        raise error
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    print("  this is a defect of Luthier or of a plugin; --debug shows where it happened", file=sys.stderr)
    return 1


def report(error: LuthierError, code: int, as_json: bool) -> None:
    """The message on standard error; with `as_json` also one JSON document on standard output."""
    if as_json:
        document: dict[str, object] = {"error": error.message, "where": error.where, "fix": error.fix, "exit_code": code}
        if isinstance(error, PlanRefused):
            draft = error.draft if isinstance(error.draft, dict) else {}
            document = {**draft, "problems": to_plain(error.problems), "exit_code": code}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    print(f"error: {error}", file=sys.stderr)
