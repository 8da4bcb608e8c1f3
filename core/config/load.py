"""From YAML text and `key=value` words to a RunConfig, with every problem said at once.

Options of methods are parsed from here too, while plugins are discovered: YAML is imported where a file is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from luthier.core.config.plain import plain_data, shown
from luthier.core.config.schema import AUTO, SLOT_KEYS, Choice, RunConfig
from luthier.core.config.types import branches, dataclasses_in, expand_shorthand, inside, is_list, is_section
from luthier.core.config.validate import REQUIRED, UNKNOWN_KEY, parse_options, required_fix, suggest, without_misspelt
from luthier.core.errors import ConfigError, PlanRefused, Problem
from luthier.core.frozen import FrozenDict, freeze
from luthier.core.serial import hints_of

OVERRIDE_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+|\[\d+\])*")


def read_config_file(path: Path) -> dict[str, Any]:
    """The mapping in a configuration file; raises ConfigError when there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        fix = "save the file in the encoding UTF-8"
        raise ConfigError("is not UTF-8 text", where=f"{path}:{line}", fix=fix) from None
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError("there is no such configuration file", where=str(path), fix=_another_file(path)) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, not a configuration file", where=str(path), fix=_another_file(path / "_")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", where=str(path)) from None
    from luthier.core.config.yaml_text import read_yaml

    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        found = "the file is empty" if data is None else f"this is {shown(data)}"
        raise ConfigError(
            f"a configuration is a mapping of keys to values, {found}",
            where=str(path),
            fix="begin with `model: ...`, `data: ...`, `stage: ...`",
        )
    return data


def _another_file(path: Path) -> str:
    """The nearest YAML file beside one that is not there."""
    try:
        beside = sorted(
            other.name for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml") and other.name[0] != "."
        )
    except (OSError, ValueError):
        return f"there is no folder {path.parent} either"
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    if beside:
        return f"there are: {', '.join(beside[:8])}{' ...' if len(beside) > 8 else ''}"
    return "give the path of a YAML file; docs/quickstart.md has one to start from"


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping with every `path.to.key=value` set; values are read as YAML.

    A slot written as a name becomes a mapping when an option of it is set: with `adapter: lora`, `adapter.rank=8` gives
    `{use: lora, rank: 8}`. An item of a list goes by its number: `data.train.0.rows=100`, or `data.train[0].rows=100`.
    """
    from luthier.core.config.yaml_text import read_yaml

    result: dict[str, Any] = plain_data(raw)
    for word in overrides:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or not OVERRIDE_KEY.fullmatch(key):
            raise ConfigError(f"{word!r} is no override", fix="write key=value, for example adapter.rank=8")
        path = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
        result = _with(result, path, read_yaml(text, f"override {key}"), RunConfig, "", word)
    return result


def _with(value: Any, path: Sequence[str], new: Any, hint: Any, where: str, word: str) -> Any:
    """`value` with `new` set at `path`; sections that are not there yet are made, shorthands are written out."""
    if not path:
        return new
    part, rest = path[0], path[1:]
    value = _opened(value, hint)
    hints = [found for branch in branches(hint) for found in inside(branch, int(part) if part.isdigit() else part)]
    below_hint = hints[0] if hints else None
    if isinstance(value, list):
        if not part.isdigit() or int(part) >= len(value):
            fix = (
                f"it has {len(value)} item{'s' if len(value) > 1 else ''}, counted from 0"
                if value
                else f"write {where}=[...]"
            )
            raise ConfigError(f"{word!r}: `{where}` has no item {part}", fix=fix)
        value[int(part)] = _with(value[int(part)], rest, new, below_hint, f"{where}.{part}", word)
    elif isinstance(value, dict):
        if part.isdigit():
            takes_items = any(is_list(branch) for branch in branches(hint))
            fix = f"write {where}=[...]" if takes_items else f"set {where} itself"
            raise ConfigError(f"{word!r}: `{where}` has no items", fix=fix)
        value[part] = _with(value.get(part), rest, new, below_hint, f"{where}.{part}".lstrip("."), word)
    else:
        raise ConfigError(f"{word!r}: `{where}` is {shown(value)} and has no keys", fix=f"set {where} itself")
    return value


def _opened(value: Any, hint: Any) -> Any:
    """A value in the form that has keys or items: a slot's name as `{use: name}`, an empty section as `{}`."""
    if value is None:
        return {}
    if Choice in dataclasses_in(hint):
        return {"use": value} if isinstance(value, str) else value
    one_of_many = isinstance(value, dict) and any(is_list(branch) for branch in branches(hint))
    return expand_shorthand(hint, value) if isinstance(value, str) or one_of_many else value


def parse_choice(value: Any, where: str) -> Choice:
    """`lora`, or `{use: lora, rank: 8}`; options without `use` leave the choice to the plan, among those that take them."""
    if isinstance(value, str) and value:
        return Choice(use=value)
    if isinstance(value, Mapping):
        options = {str(key): item for key, item in value.items() if key != "use"}
        if "use" not in value and where.startswith("patches"):
            raise PlanRefused([Problem(where=where, reason="names no patch", fix="write {use: NAME, ...options}")])
        use = value.get("use", AUTO)
        if not isinstance(use, str) or not use:
            problem = Problem(
                where=f"{where}.use", reason=f"must be a method's name, got {shown(use)}", fix="write `use: NAME`"
            )
            raise PlanRefused([problem])
        return Choice(use=use, options=freeze(options))
    reason = f"must be a name or a mapping {{use: name, ...options}}, got {shown(value)}"
    raise PlanRefused([Problem(where=where, reason=reason, fix=f"leave `{where}` out, or write a name or `auto`")])


def parse_slot(key: str, value: Any) -> Choice | tuple[Choice, ...]:
    """The value of one slot; `patches` takes a list too."""
    if key != "patches":
        return parse_choice(value, key)
    if not isinstance(value, list | tuple):
        choice = parse_choice(value, key)
        return choice if choice.is_auto else (choice,)
    chosen: list[Choice] = []
    problems: list[Problem] = []
    for index, item in enumerate(value):
        try:
            chosen.append(parse_choice(item, f"patches[{index}]"))
        except PlanRefused as refused:
            problems += refused.problems
    if problems:
        raise PlanRefused(problems)
    return tuple(chosen)


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain data; raises PlanRefused with every problem."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"a configuration is a mapping of keys to values, this is {shown(raw)}")
    try:
        plain: dict[str, Any] = plain_data(raw)
    except PlanRefused as refused:
        raise PlanRefused(refused.problems, subject="configuration") from None
    hints = hints_of(RunConfig)
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    problems: list[Problem] = [
        Problem(where=key, reason=UNKNOWN_KEY, fix=suggest(key, list(fields))) for key in plain if key not in fields
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in plain:
            if field.default is dataclasses.MISSING:
                problems.append(Problem(where=name, reason=REQUIRED, fix=required_fix(RunConfig, name, hints[name])))
            continue
        try:
            values[name] = _parse_field(name, hints[name], plain[name])
        except PlanRefused as refused:
            problems += refused.problems
    if problems:
        raise PlanRefused(without_misspelt(problems), subject="configuration")
    return RunConfig(**values)


def _parse_field(name: str, hint: Any, value: Any) -> Any:
    if name in SLOT_KEYS:
        return parse_slot(name, value)
    if is_section(hint):
        return parse_options(hint, expand_shorthand(hint, value), where=name)
    return getattr(parse_options(_alone(name), FrozenDict({name: value}), where=""), name)


@cache
def _alone(name: str) -> type:
    """A dataclass with this one field of RunConfig, for keys that are no section."""
    return dataclasses.make_dataclass("Field", [(name, hints_of(RunConfig)[name])], frozen=True, kw_only=True)


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration from a YAML file or a mapping, with `key=value` overrides on top.

    Raises ConfigError (no such file, not YAML) or PlanRefused (unknown keys, wrong types, out of bounds: all of them).
    """
    raw = read_config_file(Path(source)) if isinstance(source, str | os.PathLike) else source
    try:
        return parse_config(apply_overrides(raw, overrides) if isinstance(raw, Mapping) else raw)
    except PlanRefused as refused:
        where = "" if isinstance(source, Mapping) else str(source)
        raise PlanRefused(refused.problems, subject="configuration", where=where) from None
