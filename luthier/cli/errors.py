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
        return _interrupted(as_json)
    except BrokenPipeError:
        # The reader of our output went away (`luthier methods | head`): nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error, debug, as_json)


def _interrupted(as_json: bool) -> int:
    if as_json:
        _print_document("interrupted", ExitCode.INTERRUPTED)
    print("interrupted", file=sys.stderr)
    return ExitCode.INTERRUPTED


def _unexpected(error: Exception, debug: bool, as_json: bool) -> int:
    import typer

    # Newer releases of typer carry click inside; the class is the same by name, not by identity.
    usage = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, typer.Abort):
        return _interrupted(as_json)
    if isinstance(error, usage):
        if as_json:
            _print_document(error.format_message(), ExitCode.REFUSED)  # type: ignore[attr-defined]
        error.show()  # type: ignore[attr-defined]
        return ExitCode.REFUSED
    if as_json:
        _print_document(f"{type(error).__name__}: {error}", 1)
    if debug:
        raise error
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    print("  this is a defect of Luthier or of a plugin; --debug shows where it happened", file=sys.stderr)
    return 1


def report(error: LuthierError, code: int, as_json: bool) -> None:
    """The message on standard error; with `as_json` also one JSON document on standard output."""
    if as_json:
        document = _document(error.message, code, where=error.where, fix=error.fix)
        if isinstance(error, PlanRefused):
            draft = error.draft if isinstance(error.draft, dict) else {}
            document = {**draft, "problems": to_plain(error.problems), "exit_code": code}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    print(f"error: {error}", file=sys.stderr)


def _document(error: str, code: int, *, where: str = "", fix: str = "") -> dict[str, object]:
    return {"error": error, "where": where, "fix": fix, "exit_code": int(code)}


def _print_document(error: str, code: int) -> None:
    print(json.dumps(_document(error, code), indent=2, ensure_ascii=False))
