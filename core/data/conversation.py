"""The canonical form of a row of each kind, and the check that it is one.

Formats of third parties give whatever they give: the check runs on every row, whoever converted it. It also takes what chat
APIs write in several ways, and gives one:

    tool calls whose arguments are JSON text    -> arguments as an object; OpenAI's old `function_call` -> `tool_calls`
    content in parts of text                    -> one text; content that is null beside tool calls -> ""
    roles `developer` and `function`            -> `system` and `tool`
    `reasoning`, `thinking`                     -> `reasoning_content`
    `weight: 0` and `weight: 1`                 -> `train: false` and `train: true`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from luthier.core.contracts import DataKind
from luthier.core.data.calls import checked_calls, checked_tools
from luthier.core.extensions import Row, RowError
from luthier.core.rows import encodable, shown_type

Messages: TypeAlias = list[dict[str, Any]]
ROLES: Final = ("system", "user", "assistant", "tool")
_SAME_ROLE: Final = {role: role for role in ROLES} | {"developer": "system", "function": "tool"}
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_TEXTS: Final = ("name", "tool_call_id")
_ORDINARY: Final = {"role", "content"}
_NOT_TEXT: Final = ("image", "audio", "video", "file", "input_")


def check_row(kind: DataKind, canonical: Any) -> dict[str, Any]:
    """The canonical row in plain dicts and lists; raises RowError naming the column, such as messages[2].role."""
    if not isinstance(canonical, Mapping):
        raise RowError(f"the format gave {shown_type(canonical)}, not an object")
    unknown = [key for key in canonical if key not in _KEYS[kind]]
    if unknown:
        raise RowError(f"is no part of a {kind} row: {', '.join(_KEYS[kind])}", column=str(unknown[0]))
    row = _CHECKS[kind](canonical)
    tools = canonical.get("tools")
    if tools:
        row["tools"] = checked_tools(tools)
    return row


def check_messages(value: Any, column: str = "messages") -> Messages:
    """A non-empty list of messages; raises RowError naming the column, such as messages[2].role.

    A key of a message that is not understood is refused unless it is null: what is left out silently would change what is
    learned.
    """
    if not isinstance(value, list | tuple):
        raise RowError(f"must be a list of messages, not {shown_type(value)}", column=column)
    if not value:
        raise RowError("is empty: a conversation needs messages", column=column)
    return [_message(message, column, index) for index, message in enumerate(value)]


def check_conversation(value: Any, column: str, *, led: bool = False) -> Messages:
    """Messages to learn from, for a format whose rows have them in another column, which errors then name.

    `led`: something comes before them, such as a system text from a column of its own.
    """
    messages = check_messages(value, column)
    _learnable(messages, column, led=led)
    return messages


def check_text(value: Any, column: str) -> str:
    """A string that can be encoded; raises RowError otherwise (a lone surrogate is valid JSON, but no text)."""
    if not isinstance(value, str):
        raise RowError(f"must be a string, not {shown_type(value)}", column=column)
    return encodable(value, column)


def _message(message: Any, column: str, index: int) -> dict[str, Any]:
    if type(message) is dict and len(message) == 2 and message.keys() == _ORDINARY:
        role, content = message["role"], message["content"]
        if role in ROLES and type(content) is str:
            return {"role": role, "content": check_text(content, f"{column}[{index}].content")}
    return _any_message(message, f"{column}[{index}]")


def _any_message(message: Any, at: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RowError(f"must be an object with role and content, not {shown_type(message)}", column=at)
    given = {key: value for key, value in message.items() if value is not None}
    calls = checked_calls(given, at)
    if "role" not in given or ("content" not in given and not calls and not any(key in given for key in _REASONING)):
        key = "content" if "role" in given else "role"
        state = "is null" if key in message else "is missing"
        raise RowError(f"{state}; the message has: {', '.join(map(str, given)) or 'nothing'}", column=f"{at}.{key}")
    role = given["role"]
    if not isinstance(role, str) or role not in _SAME_ROLE:
        raise RowError(f"{role!r:.40} is no role; the roles are {', '.join(ROLES)}", column=f"{at}.role")
    made: dict[str, Any] = {"role": _SAME_ROLE[role], "content": _content(given.get("content", ""), f"{at}.content")}
    if calls:
        made["tool_calls"] = calls
    for key, value in given.items():
        if key in _REASONING:
            made["reasoning_content"] = check_text(value, f"{at}.{key}")
        elif key in _TEXTS:
            made[key] = check_text(value, f"{at}.{key}")
        elif key in ("train", "weight"):
            made["train"] = _train(value, key, at) and made.get("train", True)
        elif key not in ("role", "content", "tool_calls", "function_call"):
            raise RowError(
                "is not understood, and leaving it out would change what is learned (the format messages has the option "
                "`ignore` for keys that say nothing)",
                column=f"{at}.{key}",
            )
    if made.get("train"):
        del made["train"]
    return made


def _train(value: Any, key: str, at: str) -> bool:
    if isinstance(value, bool) or (key == "weight" and value in (0, 1)):
        return bool(value)
    allowed = "true or false" if key == "train" else "0 or 1"
    raise RowError(f"must be {allowed}, not {value!r:.40}", column=f"{at}.{key}")


def _content(value: Any, column: str) -> str:
    """A text; of OpenAI's parts, those of text one after another."""
    if not isinstance(value, list | tuple):
        return check_text(value, column)
    texts = []
    for index, part in enumerate(value):
        at = f"{column}[{index}]"
        if isinstance(part, str):
            texts.append(check_text(part, at))
            continue
        kind = str(part.get("type", "")) if isinstance(part, Mapping) else ""
        if kind.startswith(_NOT_TEXT):
            raise RowError(f"is of the type {kind}: the model reads text only", column=at)
        if kind not in ("text", "output_text") or "text" not in part:
            raise RowError('must be {"type": "text", "text": ...}', column=at)
        texts.append(check_text(part["text"], f"{at}.text"))
    return "".join(texts)


def _answers(messages: Messages, column: str, *, required: bool = True) -> None:
    """Raises RowError where an answer that is learned is empty, or (`required`) where there is no answer."""
    found = False
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        found = True
        if not message["content"].strip() and "tool_calls" not in message and message.get("train") is not False:
            raise RowError("is an empty answer", column=f"{column}[{index}].content")
    if required and not found:
        raise RowError("has no assistant turn: there is nothing to learn from it", column=column)


def _conversation(row: Row) -> dict[str, Any]:
    messages = check_messages(row.get("messages"))
    completion = check_messages(row["completion"], "completion") if row.get("completion") else []
    if completion:
        _answers(messages, "messages", required=False)
        _answers(completion, "completion")
        return {"messages": messages, "completion": completion}
    _learnable(messages, "messages")
    return {"messages": messages}


def _learnable(messages: Messages, column: str, *, led: bool = False) -> None:
    _answers(messages, column)
    if not led and messages[0]["role"] == "assistant" and messages[0].get("train") is not False:
        raise RowError("begins with the assistant: no prompt leads to such an answer", column=f"{column}[0].role")


def _text(row: Row) -> dict[str, Any]:
    text = check_text(row.get("text"), "text")
    if not text.strip():
        raise RowError("is empty", column="text")
    return {"text": text}


def _preference(row: Row) -> dict[str, Any]:
    made: dict[str, Any] = {"messages": check_messages(row.get("messages"))}
    for column in ("chosen", "rejected"):
        made[column] = _answer(row.get(column), column)
    margin = row.get("margin")
    if margin is not None:
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
            raise RowError(f"must be a finite number, not {margin!r:.40}", column="margin")
        made["margin"] = float(margin)
    return made


def _unpaired(row: Row) -> dict[str, Any]:
    if not isinstance(row.get("label"), bool):
        raise RowError(f"must be true or false, not {row.get('label')!r:.40}", column="label")
    answer = _answer(row.get("completion"), "completion")
    return {"messages": check_messages(row.get("messages")), "completion": answer, "label": row["label"]}


def _answer(value: Any, column: str) -> Messages:
    messages = check_messages(value, column)
    _answers(messages, column)
    return messages


def _prompt(row: Row) -> dict[str, Any]:
    messages = check_messages(row.get("messages"))
    last = len(messages) - 1
    if messages[last]["role"] == "assistant":
        raise RowError("ends with the assistant: nothing is left to answer", column=f"messages[{last}].role")
    if messages[last]["role"] != "tool" and not messages[last]["content"].strip():
        raise RowError("is an empty prompt: there is nothing to answer", column=f"messages[{last}].content")
    reference = row.get("reference")
    return {"messages": messages} if reference is None else {"messages": messages, "reference": reference}


_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "conversation": ("messages", "completion", "tools"),
    "text": ("text",),
    "preference": ("messages", "chosen", "rejected", "tools", "margin"),
    "unpaired": ("messages", "completion", "label", "tools"),
    "prompt": ("messages", "tools", "reference"),
}
_CHECKS: Final[dict[str, Callable[[Row], dict[str, Any]]]] = {
    "conversation": _conversation,
    "text": _text,
    "preference": _preference,
    "unpaired": _unpaired,
    "prompt": _prompt,
}
