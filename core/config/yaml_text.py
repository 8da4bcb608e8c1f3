"""YAML as configuration files use it: read safely, no key twice, and every mistake with its line and column."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, Final

import yaml

from luthier.core.errors import ConfigError

KEPT_TAGS: Final = ("null", "bool", "merge")
PREFIX: Final = "tag:yaml.org,2002:"


class ConfigLoader(yaml.SafeLoader):
    """YAML's safe loader, with numbers as YAML 1.2 writes them (2e-4 is one, 010 is ten, 1:30 is none), and no dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(PREFIX) in KEPT_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            if key_node.tag == PREFIX + "merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    f"the key {key!r} stands twice", seen[key], f"the key {key!r} stands twice", key_node.start_mark
                )
            seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        """A decimal, 0x or 0o number."""
        text = self.construct_scalar(node).lower()
        base = {"0x": 16, "0o": 8}.get(text.lstrip("+-")[:2], 10)
        return int(text, base)


ConfigLoader.add_implicit_resolver(
    PREFIX + "int", re.compile(r"^[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|[0-9]+(_[0-9]+)*)$"), list("-+0123456789")
)
ConfigLoader.add_implicit_resolver(
    PREFIX + "float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
ConfigLoader.add_constructor(PREFIX + "int", ConfigLoader.construct_whole_number)
for _tag in ("binary", "omap", "pairs", "set", "timestamp"):
    # Nothing in a configuration is of these kinds; left in, `!!timestamp x` would even end in an AttributeError.
    ConfigLoader.add_constructor(PREFIX + _tag, ConfigLoader.construct_undefined)  # type: ignore[type-var]


def read_yaml(text: str, where: str) -> Any:
    """Data of a YAML text; raises ConfigError with line and column."""
    try:
        return yaml.load(text, Loader=ConfigLoader)  # noqa: S506  # ConfigLoader is a SafeLoader
    except yaml.YAMLError as error:
        place, problem = _explain(error, text)
        raise ConfigError(f"not readable as YAML: {problem}", where=f"{where}{place}", fix=_fix(problem)) from None
    except RecursionError:
        raise ConfigError("not readable as YAML: nested too deeply", where=where) from None
    except (ValueError, LookupError) as error:
        # What an explicit tag does to text that is not of its kind: `!!int abc`, `!!bool maybe`; or a number of 5000 digits.
        raise ConfigError(f"not readable as YAML: a value that is not of its kind: {error}", where=where) from None


def _fix(problem: str) -> str:
    if "stands twice" in problem:
        return "keep one of them"
    if "for the tag" in problem:
        return "leave the `!` tag out; where a value begins with `!`, put it in quotes"
    return "check indentation (spaces, no tabs), colons and quotes near that place"


def _explain(error: yaml.YAMLError, text: str) -> tuple[str, str]:
    """(":line:column", what is wrong); the earlier place that PyYAML knows becomes part of the sentence."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position].splitlines() or [""]
        return f":{len(before)}:{len(before[-1]) + 1}", f"the character {chr(error.character)!r} is not allowed"
    mark, context_mark = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    problem, context = getattr(error, "problem", None), getattr(error, "context", None)
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    if context and problem and context != problem:
        return place, f"{problem} ({context}{f' from line {context_mark.line + 1}' if context_mark else ''})"
    first = f" (the first is in line {context_mark.line + 1})" if context and context_mark else ""
    return place, f"{problem or context or error}{first}"
