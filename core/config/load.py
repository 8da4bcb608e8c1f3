"""From YAML text and `key=value` words to a RunConfig, with every problem said at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from luthier.core.config.schema import AUTO, SLOT_KEYS, Choice, RunConfig
from luthier.core.config.types import type_text
from luthier.core.config.validate import parse_options, shown, suggest
from luthier.core.errors import ConfigError, PlanRefused, Problem
from luthier.core.frozen import FrozenDict, freeze
from luthier.core.serial import hints_of


class ConfigLoader(yaml.SafeLoader):
    """YAML's safe loader, with numbers as YAML 1.2 writes them (2e-4 is one), no dates, and no key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    f"the key {key!r} stands twice", seen[key], "here again", key_node.start_mark
                )
            seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep)


ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read_yaml(text: str, where: str) -> Any:
    """Data of a YAML text; raises ConfigError with line and column."""
    try:
        return yaml.load(text, Loader=ConfigLoader)  # noqa: S506  # ConfigLoader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
        context = getattr(error, "context", None)
        message = f"not readable as YAML: {context + '; ' if context and context != problem else ''}{problem}"
        raise ConfigError(message, where=place, fix="check indentation, colons and quotes near that place") from None


def read_config_file(path: Path) -> dict[str, Any]:
    """The mapping in a configuration file; raises ConfigError when there is none."""
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        fix = f"there are: {', '.join(near[:8])}" if near else "give the path of a YAML file; docs/quickstart.md has one to start from"
        raise ConfigError("there is no such configuration file", where=str(path), fix=fix)
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"cannot be read as UTF-8 text: {error}", where=str(path)) from None
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(
            f"a configuration is a mapping of keys to values, this is {shown(data)}",
            where=str(path),
            fix="begin with `model: ...`, `data: ...`, `stage: ...`",
        )
    return data


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping with every `path.to.key=value` set; values are read as YAML.

    A slot written as a name becomes a mapping when an option of it is set: with `adapter: lora`, `adapter.rank=8` gives
    `{use: lora, rank: 8}`.
    """
    result: dict[str, Any] = _copy(raw)
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", key):
            raise ConfigError(f"{word!r} is no override", fix="write key=value, for example adapter.rank=8")
        _set(result, key.split("."), read_yaml(text, f"override {key}"), word)
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _set(target: dict[str, Any], path: list[str], value: Any, word: str) -> None:
    hints = hints_of(RunConfig)
    place: Any = target
    for depth, part in enumerate(path[:-1]):
        key: str | int = int(part) if isinstance(place, list) and part.isdigit() else part
        missing = (key not in place) if isinstance(place, dict) else not (isinstance(key, int) and key < len(place))
        if missing and isinstance(place, list):
            raise ConfigError(f"{word!r}: there is no item {part}", where=".".join(path[:depth]))
        current = {} if missing else place[key]
        if isinstance(current, str):
            shorthand = "use" if path[0] in SLOT_KEYS else getattr(hints.get(path[0]), "SHORTHAND", "path")
            current = {shorthand: current}
        if not isinstance(current, dict | list):
            raise ConfigError(f"{word!r}: `{'.'.join(path[: depth + 1])}` is {shown(current)} and has no keys")
        place[key] = current
        place = current
    last = path[-1]
    if isinstance(place, list):
        if not last.isdigit() or int(last) >= len(place):
            raise ConfigError(f"{word!r}: there is no item {last} to set", where=".".join(path[:-1]))
        place[int(last)] = value
    else:
        place[last] = value


def parse_choice(value: Any, where: str) -> Choice:
    """`lora`, or `{use: lora, rank: 8}`; options without `use` leave the choice to the plan, among those that take them."""
    if isinstance(value, str) and value:
        return Choice(use=value)
    if isinstance(value, Mapping):
        options = {str(key): item for key, item in value.items() if key != "use"}
        use = value.get("use", AUTO if not where.startswith("patches") else None)
        if not isinstance(use, str) or not use:
            problem = Problem(where=f"{where}.use", reason=f"must be a method's name, got {shown(use)}", fix="write `use: NAME`")
            raise PlanRefused([problem])
        return Choice(use=use, options=freeze(options))
    raise PlanRefused(
        [Problem(where=where, reason=f"must be a name or {{use: name, ...options}}, got {shown(value)}")]
    )


def parse_slot(key: str, value: Any) -> Choice | tuple[Choice, ...]:
    """The value of one slot; `patches` takes a list too."""
    if key == "patches" and isinstance(value, list | tuple):
        return tuple(parse_choice(item, f"patches[{index}]") for index, item in enumerate(value))
    choice = parse_choice(value, key)
    return choice if key != "patches" or choice.is_auto else (choice,)


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain data; raises PlanRefused with every problem."""
    hints = hints_of(RunConfig)
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    problems: list[Problem] = [
        Problem(where=str(key), reason="unknown key", fix=suggest(str(key), list(fields))) for key in raw if key not in fields
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in raw:
            if field.default is dataclasses.MISSING:
                problems.append(Problem(where=name, reason=f"is required: {type_text(hints[name])}"))
            continue
        try:
            values[name] = _parse_field(name, hints[name], raw[name])
        except PlanRefused as refused:
            problems += refused.problems
    if problems:
        raise PlanRefused(problems)
    return RunConfig(**values)


def _parse_field(name: str, hint: Any, value: Any) -> Any:
    if name in SLOT_KEYS:
        return parse_slot(name, value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, str) and hasattr(hint, "SHORTHAND"):
            value = {hint.SHORTHAND: value}
        return parse_options(hint, value, where=name)
    single = dataclasses.make_dataclass("Field", [(name, hint)], frozen=True, kw_only=True)
    return getattr(parse_options(single, FrozenDict({name: value}), where=""), name)


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration from a YAML file or a mapping, with `key=value` overrides on top.

    Raises ConfigError (no such file, not YAML) or PlanRefused (unknown keys, wrong types, out of bounds: all of them).
    """
    raw = source if isinstance(source, Mapping) else read_config_file(Path(source))
    return parse_config(apply_overrides(raw, overrides))


