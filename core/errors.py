"""The errors a user can meet, each with the exit code that the command line returns for it.

Every message says what was wrong, where (file, key, row), and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Literal


class ExitCode(IntEnum):
    """Exit codes of the `luthier` command; documented in docs/cli.md."""

    DONE = 0
    REFUSED = 2
    ENVIRONMENT = 3
    DATA = 4
    BUDGET = 5
    OUT_OF_MEMORY = 6
    INTERRUPTED = 130


class LuthierError(Exception):
    """An error with a message for the user: no traceback is shown unless `--debug` is given."""

    exit_code: ClassVar[ExitCode] = ExitCode.REFUSED

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        self.message, self.where, self.fix = message, where, fix
        super().__init__(message)

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class ConfigError(LuthierError):
    """The configuration cannot be used as it stands."""


class ModelError(LuthierError):
    """The model reference cannot be read: missing, incomplete, corrupt, or not permitted."""


class OutputError(LuthierError):
    """The output folder cannot be used or written."""


class MissingEnvironmentError(LuthierError):
    """A package, a device or a network resource that the run needs is not there."""

    exit_code = ExitCode.ENVIRONMENT


class DataError(LuthierError):
    """The training or evaluation data cannot be used; `where` names file, row and column."""

    exit_code = ExitCode.DATA


class OutOfMemoryError(LuthierError):
    """The device ran out of memory while the plan was running."""

    exit_code = ExitCode.OUT_OF_MEMORY


class Interrupted(LuthierError):
    """The user stopped the run; a checkpoint was saved where the message says so."""

    exit_code = ExitCode.INTERRUPTED


class PluginError(LuthierError):
    """A plugin is broken and was selected, or `LUTHIER_STRICT_PLUGINS=1` is set."""

    exit_code = ExitCode.ENVIRONMENT


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason why a plan was refused.

    `methods` names who is concerned as "slot: name"; `fix` is the nearest change that would make it work. A problem
    of kind "environment" is about what is installed or plugged in, any other is about the configuration.
    """

    reason: str
    methods: tuple[str, ...] = ()
    where: str = ""
    fix: str = ""
    kind: Literal["config", "environment", "budget"] = "config"

    def __str__(self) -> str:
        head = f"{self.where}: {self.reason}" if self.where else self.reason
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class PlanRefused(LuthierError):
    """The configuration resolves to no plan; carries every problem that was found, not only the first.

    `subject` says what was refused: "plan", or "configuration" where it could not even be read.
    """

    def __init__(self, problems: Sequence[Problem], draft: object = None, *, subject: str = "plan", where: str = "") -> None:
        self.problems = tuple(problems)
        self.draft = draft
        count = len(self.problems)
        lines = [f"the {subject} was refused: {count} problem{'s' if count != 1 else ''}"]
        for number, problem in enumerate(self.problems, 1):
            first, *more = str(problem).splitlines()
            lines += [f"{number:3}. {first}", *(f"   {line}" for line in more)]
        super().__init__("\n".join(lines), where=where)

    @property
    def code(self) -> ExitCode:
        """`REFUSED` when anything in the configuration is wrong; otherwise what is missing decides."""
        kinds = {problem.kind for problem in self.problems}
        if "config" in kinds:
            return ExitCode.REFUSED
        return ExitCode.ENVIRONMENT if "environment" in kinds else ExitCode.BUDGET
