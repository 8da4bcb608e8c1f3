"""A function from a file of the user's: `path: rewards.py:score` in the configuration is what makes it run.

def score(prompts, completions, references):
    return [float(len(text)) for text in completions]
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.core.rewards.config import FunctionTerm, function_file
from luthier.core.rewards.scoring import RewardError, Score, Scored, failed


def python(name: str, term: FunctionTerm) -> Score:
    """Runs the file now, and its function for each batch. Raises RewardError where either fails."""
    file = function_file(term)
    function = load_function(name, file, term.path.rpartition(":")[2])

    def score(answers: Sequence[Scored]) -> Any:
        try:
            return function(
                prompts=[answer.prompt for answer in answers],
                completions=[answer.text for answer in answers],
                references=[answer.reference for answer in answers],
            )
        except (Exception, SystemExit) as error:
            raise failed(name, answers, error, _place(file, error)) from error

    return score


def load_function(term: str, file: Path, name: str) -> Callable[..., Any]:
    """`name` of a Python file, which may import what stands beside it under its own packages' names only."""
    if not file.is_file():
        raise RewardError(term, f"there is no file {file}", fix="check the path of the function")
    spec = importlib.util.spec_from_file_location(f"luthier_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise RewardError(term, f"{file} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RewardError(term, f"{_place(file, error) or file} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RewardError(term, f"{file} has no function {name}", fix=f"it has: {', '.join(known) or 'none'}")
    found: Callable[..., Any] = function
    return found


def _place(file: Path, error: BaseException) -> str:
    """The last line of the user's file in the way of an error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f"{file}, line {lines[-1]}" if lines else ""
