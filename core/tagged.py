"""Conversations whose messages name role and content in other words, as ShareGPT and LLaMA-Factory do, as plain messages.

    {"from": "human", "value": "Warm today?"}                                  {"role": "user", "content": "Warm today?"}
    {"from": "function_call", "value": "{\\"name\\": \\"weather\\", ...}"}     {"role": "assistant", "tool_calls": [...]}
    {"from": "observation", "value": "21 °C"}                                  {"role": "tool", "content": "21 °C"}

An answer keeps what it says about being learned; other keys of a message with `from` are not used.

Standard library only: shared by the plugins whose rows hold such conversations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.extensions import RowError
from luthier.core.options import option
from luthier.core.rows import Turn, encodable, shown_type

# Understood beside the tags of the options, whatever those are.
KNOWN_ROLES: Final = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation"), "tool"),
    "system": "system",
    "function_call": "call",
}


@dataclass(frozen=True, kw_only=True)
class Tags:
    """What the messages call role and content, and the roles; the names of LLaMA-Factory's `tags`."""

    role_tag: str = option("from", "The key of a message's role; `role` is understood as well.")
    content_tag: str = option("value", "The key of its text; `content` is understood as well.")
    user_tag: str = option("human", "The role of the user.")
    assistant_tag: str = option("gpt", "The role of the assistant.")
    observation_tag: str = option("observation", "The role of a tool's result.")
    function_tag: str = option("function_call", "The role of a tool call, whose text is JSON with name and arguments.")
    system_tag: str = option("system", "The role of the system message.")

    def roles(self) -> Mapping[str, str]:
        """Role by tag; "call" stands for a tool call."""
        return KNOWN_ROLES | {
            self.user_tag: "user",
            self.assistant_tag: "assistant",
            self.observation_tag: "tool",
            self.function_tag: "call",
            self.system_tag: "system",
        }


def tagged_turns(value: Any, column: str, tags: Tags) -> list[Turn]:
    """The messages; raises RowError for what is no list of messages, an unknown role, or a tool call that is no JSON."""
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a list of messages, not {shown_type(value)}", column=column)
    if not value:
        raise RowError("is empty: there are no messages in it", column=column)
    roles = tags.roles()
    return [_turn(message, f"{column}[{index}]", tags, roles) for index, message in enumerate(value)]


def _turn(message: Any, column: str, tags: Tags, roles: Mapping[str, str]) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError(f"must be an object with {tags.role_tag} and {tags.content_tag}", column=column)
    role_key = tags.role_tag if tags.role_tag in message else "role"
    content_key = tags.content_tag if tags.content_tag in message else "content"
    for key, name in ((role_key, tags.role_tag), (content_key, tags.content_tag)):
        if key not in message:
            raise RowError(
                f"is missing; the message has: {', '.join(map(str, message)) or 'nothing'}", column=f"{column}.{name}"
            )
    role = roles.get(message[role_key]) if isinstance(message[role_key], str) else None
    if role is None:
        known = ", ".join(sorted(roles))
        raise RowError(f"{message[role_key]!r:.40} is no role; the roles are {known}", column=f"{column}.{role_key}")
    content = message[content_key]
    if role == "call":
        calls = calls_of(content, f"{column}.{content_key}")
        return {"role": "assistant", "content": "", "tool_calls": calls, **_learned(message, f"{column}.loss")}
    if content_key == "content" and role_key == "role":
        return {**message, "role": role}  # a message as chat APIs write it, with whatever else it has
    if not isinstance(content, str):
        raise RowError(f"must be a string, not {shown_type(content)}", column=f"{column}.{content_key}")
    content = encodable(content, f"{column}.{content_key}")
    return {"role": role, "content": content, **(_learned(message, f"{column}.loss") if role == "assistant" else {})}


def _learned(message: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Whether an answer is learned, where it says so: `train`, OpenAI's `weight`, or AgentInstruct's `loss`."""
    found = {key: message[key] for key in ("train", "weight") if message.get(key) is not None}
    loss = message.get("loss")
    if loss is None:
        return found
    if not isinstance(loss, bool):
        raise RowError(f"must be true or false, not {shown_type(loss)}", column=column)
    return {**found, "train": loss}


def calls_of(text: Any, column: str) -> list[dict[str, Any]]:
    """Tool calls as messages have them, of a call or a list of calls, or their JSON text; raises RowError for others."""
    try:
        calls = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise RowError(f"is a tool call, and no JSON: {error}", column=column) from error
    calls = calls if isinstance(calls, list | tuple) else [calls]
    for call in calls:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise RowError("is a tool call, and no object with name and arguments", column=column)
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": _arguments(call, column)}} for call in calls
    ]


def _arguments(call: Mapping[str, Any], column: str) -> Any:
    arguments = call.get("arguments", {})
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError) as error:
        raise RowError(f"is a tool call whose arguments are no JSON: {error}", column=column) from error
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise RowError(f"is a tool call whose arguments are {shown_type(arguments)}, not an object", column=column)
    return arguments
