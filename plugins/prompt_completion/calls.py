"""A request, the tools there are, and the calls that answer it.

    {"query": "Warm in Ulm?", "tools": "[{\\"name\\": \\"weather\\", ...}]", "answers": "[{\\"name\\": \\"weather\\", ...}]"}

Tools and answers are lists, or their JSON text. Parameters that are no JSON schema but a mapping of names to descriptions
become one, with those that have no default required.
As in https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.extensions import Row, RowError
from luthier.core.rows import filled_text, missing, require, tools_of, user, with_system
from luthier.core.tagged import calls_of


def detect(row: Row) -> bool:
    return "query" in row and "tools" in row and "answers" in row


def convert(row: Row) -> Row:
    """The canonical row, whose completion is the calls; raises RowError naming the column."""
    tools = tools_of(row).get("tools")
    if tools is None:
        raise RowError("is empty: there is no tool to call", column="tools") if "tools" in row else missing(row, "tools")
    calls = calls_of(require(row, "answers"), "answers")
    if not calls:
        raise RowError("is an empty answer", column="answers")
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    messages = with_system([user(filled_text(row, "query"))], row)
    return {
        "messages": messages,
        "completion": [answer],
        "tools": [_schema(tool, index) for index, tool in enumerate(tools)],
    }


def _schema(tool: Any, index: int) -> Mapping[str, Any]:
    """A tool as `apply_chat_template` takes it; one that is already so stays as it is."""
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        return tool
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str):
        raise RowError("must be an object with name and parameters", column=f"tools[{index}]")
    parameters = tool.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise RowError("must be an object", column=f"tools[{index}].parameters")
    if parameters.get("type") != "object":
        needed = [name for name, about in parameters.items() if isinstance(about, Mapping) and "default" not in about]
        parameters = {"type": "object", "properties": dict(parameters), "required": needed}
    return {"type": "function", "function": {**tool, "parameters": parameters}}
