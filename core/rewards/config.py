"""The terms of a reward, as a configuration says them: each is named by `use`, has its options, and a weight.

reward:
  - {use: length, max_words: 20}
  - {use: regex, pattern: '\\.$', weight: 2}
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from luthier.core.config.schema import Choice
from luthier.core.config.validate import parse_options, suggest
from luthier.core.contracts import Support
from luthier.core.errors import LuthierError, PlanRefused
from luthier.core.frozen import thaw
from luthier.core.options import option

REWARD_DOC: Final = (
    "What answers are judged by: one or more of regex, length, exact_match, json_valid, function, run and http, each with "
    "its options and a weight; their weighted sum is the reward."
)


@dataclass(frozen=True, kw_only=True)
class Term:
    """What every term has."""

    weight: float = option(1.0, "Factor of this term in the sum; negative for what is to be avoided.")

    def __post_init__(self) -> None:
        if not self.weight:
            raise ValueError("weight 0 leaves the term without effect: take it out")


@dataclass(frozen=True, kw_only=True)
class RegexTerm(Term):
    """1 where the answer matches, else 0."""

    pattern: str = option(doc="A regular expression of Python's `re`.")
    match: Literal["search", "fullmatch"] = option("search", "Anywhere in the answer, or the whole of it.")
    ignore_case: bool = option(False, "Upper and lower case are the same.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _compiled(self.pattern, "pattern")


@dataclass(frozen=True, kw_only=True)
class LengthTerm(Term):
    """1 within the bounds; outside of them the ratio to the bound, so that every word less or more counts."""

    min_words: int | None = option(None, "Fewest words, as white space separates them.", ge=1)
    max_words: int | None = option(None, "Most words.", ge=1)
    min_tokens: int | None = option(None, "Fewest tokens, without the one that ends the answer.", ge=1)
    max_tokens: int | None = option(None, "Most tokens.", ge=1)
    power: float = option(1.0, "Exponent of the ratio: above 1 the reward falls faster outside of the bounds.", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if all(bound is None for bound in (self.min_words, self.max_words, self.min_tokens, self.max_tokens)):
            raise ValueError("give at least one of min_words, max_words, min_tokens and max_tokens")
        for unit, least, most in (("words", self.min_words, self.max_words), ("tokens", self.min_tokens, self.max_tokens)):
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} ({least}) is above max_{unit} ({most}): no answer has such a length")


@dataclass(frozen=True, kw_only=True)
class ExactMatchTerm(Term):
    """1 where the answer is the row's reference, else 0; white space at the ends and its amount never count."""

    ignore_case: bool = option(False, "Upper and lower case are the same.")
    ignore_punctuation: bool = option(False, "Punctuation does not count.")
    extract: str | None = option(
        None,
        "A regular expression: of the answer, what its last match says (its first group, where it has one) is compared.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extract is not None:
            _compiled(self.extract, "extract")


@dataclass(frozen=True, kw_only=True)
class JsonValidTerm(Term):
    """0 where the answer is no JSON; else (1 + keys found) / (1 + keys asked for)."""

    keys: tuple[str, ...] = option((), "Keys that the answer, then an object, must have.")


@dataclass(frozen=True, kw_only=True)
class FunctionTerm(Term):
    """What a Python function of yours says: `score(prompts=[...], completions=[...], references=[...]) -> list[float]`."""

    path: str = option(doc="File and name of the function, such as `rewards.py:score`. It is run: it is your own code.")

    def __post_init__(self) -> None:
        super().__post_init__()
        file, _, name = self.path.rpartition(":")
        if not file.endswith(".py") or not name.isidentifier():
            raise ValueError(f"path must be a file and a function's name, such as rewards.py:score, not {self.path!r}")


@dataclass(frozen=True, kw_only=True)
class RunTerm(Term):
    """The score of a reward model that a run of Luthier trained."""

    path: str = option(doc="Output folder of the reward run.")
    share: Literal["auto", "true", "false"] | bool = option(
        "auto",
        "Whether the reward model is an adapter and a head on the policy's own base model, and no second model; a stage "
        "that cannot share loads a model of its own.",
    )
    batch_tokens: int = option(4096, "Tokens that are scored at once, padding counted.", ge=1)


@dataclass(frozen=True, kw_only=True)
class HttpTerm(Term):
    """What a server says: it gets {"prompts", "completions", "references"} as JSON and gives {"rewards": [...]}."""

    url: str = option(doc="Address of the scorer, http:// or https://.")
    allow: tuple[str, ...] = option((), "Hosts besides this machine to which prompts and answers may be sent.")
    timeout: float = option(30.0, "Seconds until an answer must be there.", unit="s", gt=0)
    max_bytes: int = option(16 * 1024**2, "Size of an answer from which on it is refused.", unit="B", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http:// or https:// with a host, not {self.url!r}")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not hold a password: it would stand in the run's files")
        if not is_loopback(parts.hostname) and parts.hostname not in self.allow:
            raise ValueError(
                f"{parts.hostname} is not this machine, and prompts and answers would be sent to it: write "
                f"allow: [{parts.hostname}] beside the url where that is meant"
            )


TERMS: Final[dict[str, type[Term]]] = {
    "regex": RegexTerm,
    "length": LengthTerm,
    "exact_match": ExactMatchTerm,
    "json_valid": JsonValidTerm,
    "function": FunctionTerm,
    "run": RunTerm,
    "http": HttpTerm,
}


def parse_rewards(choices: Sequence[Choice]) -> list[tuple[str, Term]]:
    """(name, options) of each term; a name that occurs again gets a number. Raises ValueError with every problem."""
    if not choices:
        raise ValueError(f"reward is empty: name at least one of {', '.join(TERMS)}")
    parsed: list[tuple[str, Term]] = []
    problems: list[str] = []
    for number, choice in enumerate(choices):
        where = f"reward[{number}]"
        if choice.use not in TERMS:
            problems.append(f"{where}: there is no reward {choice.use!r}; {suggest(choice.use, list(TERMS))}")
            continue
        try:
            options = parse_options(TERMS[choice.use], thaw(choice.options), where=where)
        except PlanRefused as refused:
            problems += [
                f"{problem.where}: {problem.reason}" + (f"; {problem.fix}" if problem.fix else "")
                for problem in refused.problems
            ]
            continue
        before = sum(name.partition("-")[0] == choice.use for name, _ in parsed)
        parsed.append((f"{choice.use}-{before + 1}" if before else choice.use, options))
    if problems:
        raise ValueError("; ".join(problems))
    return parsed


def check_rewards(choices: Sequence[Choice]) -> None:
    """For `__post_init__` of a stage's options: raises ValueError for terms that are unknown or have impossible options."""
    parse_rewards(choices)


def support_rewards(choices: Sequence[Choice]) -> Support:
    """For `supports`: no where a function's file is not there, or a folder is not that of a reward run."""
    for name, term in parse_rewards(choices):
        if isinstance(term, FunctionTerm) and not (file := function_file(term)).is_file():
            return Support.no(f"reward: there is no file {file}", "check the path of the function")
        if isinstance(term, RunTerm):
            from luthier.core.rewards.runs import reward_plan

            try:
                reward_plan(name, Path(term.path).expanduser())
            except LuthierError as error:
                return Support.no(f"reward: {error.message}", error.fix)
    return Support.yes()


def place_rewards(stage: Choice, base: Path | None) -> Choice:
    """A stage's choice with the relative paths of its reward terms made absolute, as those of data sources are."""
    from luthier.core.data.sources.locate import place

    given: Any = thaw(stage.options).get("reward")
    terms = [given] if isinstance(given, dict) else given
    if not isinstance(terms, list):
        return stage
    placed: list[Any] = []
    for term in terms:
        if not isinstance(term, dict) or not isinstance(term.get("path"), str):
            placed.append(term)
            continue
        file, colon, name = term["path"].rpartition(":") if term.get("use") == "function" else (term["path"], "", "")
        placed.append({**term, "path": f"{place(file, base)}{colon}{name}"})
    return Choice(use=stage.use, options=stage.options.__class__({**stage.options, "reward": placed}))


def function_file(term: FunctionTerm) -> Path:
    return Path(term.path.rpartition(":")[0]).expanduser()


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} {pattern!r} is no regular expression: {error}") from None
