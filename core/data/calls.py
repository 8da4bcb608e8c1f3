"""Tool calls and tools in one form, as `apply_chat_template` takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.core.extensions import RowError
from luthier.core.rows import shown_type


def checked_calls(message: Mapping[str, Any], at: str) -> list[dict[str, Any]]:
    """The tool calls of a message, OpenAI's old `function_call` included; raises RowError naming the column.

    Each is {"type": "function", "function": {"name": str, "arguments": {...}}}, with its `id` where it has one.
    """
    calls, column = message.get("tool_calls"), f"{at}.tool_calls"
    if calls is None and "function_call" in message:
        calls, column = [{"function": message["function_call"]}], f"{at}.function_call"
    if not calls:
        return []
    if message.get("role") != "assistant":
        raise RowError("are made by the assistant only", column=column)
    if not isinstance(calls, list | tuple):
        raise RowError(f"must be a list of tool calls, not {shown_type(calls)}", column=column)
    return [_call(call, f"{column}[{index}]") for index, call in enumerate(calls)]


def _call(call: Any, at: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError('must be {"type": "function", "function": {"name": ..., "arguments": {...}}}', column=at)
    if call.get("type", "function") != "function":
        raise RowError(f"{call['type']!r:.40} is no type of tool call that is known: function", column=f"{at}.type")
    made: dict[str, Any] = {"type": "function"}
    made["function"] = {
        "name": _written(function["name"], f"{at}.name"),
        "arguments": _arguments(function.get("arguments"), f"{at}.arguments"),
    }
    return {"id": _written(str(call["id"]), f"{at}.id"), **made} if call.get("id") else made


def _arguments(value: Any, column: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RowError(f"is no JSON: {error}", column=column) from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowError(f"must be an object, not {shown_type(value)}", column=column)
    return _written(value, column)


def checked_tools(value: Any, column: str = "tools") -> list[dict[str, Any]]:
    """Tools as {"type": "function", "function": schema}; a bare schema is put into that form. Raises RowError."""
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a list of JSON schemas, not {shown_type(value)}", column=column)
    return [_tool(tool, f"{column}[{index}]") for index, tool in enumerate(value)]


def _tool(tool: Any, at: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("must be a JSON schema of a function, with its name", column=at)
    if "function" not in tool and tool.get("type") not in (None, "function"):
        raise RowError(f"{tool['type']!r:.40} is no type of tool that is known: function", column=f"{at}.type")
    bare = {key: item for key, item in function.items() if key != "type"} if function is tool else function
    return {"type": "function", "function": _written(bare, at)}


def _written(value: Any, column: str) -> Any:
    """Plain values that a chat template can write as JSON and a tokenizer can read; raises RowError for others."""
    try:
        made = plain(value)
        json.dumps(made, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError("has a broken Unicode escape, half of a surrogate pair", column=column) from error
    except (TypeError, RecursionError) as error:
        raise RowError(f"cannot be written as JSON: {error}", column=column) from error
    return made


def plain(value: Any) -> Any:
    """Dicts and lists all the way down, for templates and for hashing."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
