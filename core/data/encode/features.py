"""What a chat template leaves out without a word is refused: a model would learn answers to what it never saw.

Checked once for each feature, on the first row that has it: the row is written with a word in that place which stands
nowhere else, and the word must appear.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Final

from luthier.core.data.encode.dialogue import Dialogue
from luthier.core.data.encode.template import Template
from luthier.core.errors import DataError

PROBE: Final = "Qx7luthierProbe"
SEVERAL_CALLS: Final = "several tool_calls in one message"
NAMES_LEFT_OUT: Final = "the chat template leaves out the name of a message"


class Features:
    """Remembers what the template was seen to write."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._written: dict[str, bool] = {}

    def check(self, dialogue: Dialogue) -> tuple[str, ...]:
        """Remarks to count. Raises DataError naming the row when the template leaves out something that it has."""
        notes: tuple[str, ...] = ()
        for feature, at, key in _features(dialogue):
            if feature not in self._written:
                self._written[feature] = self._writes(dialogue, feature, at, key)
            if self._written[feature]:
                continue
            if key == "name":
                notes = (NAMES_LEFT_OUT,)
            else:
                raise _left_out(dialogue, feature)
        return notes

    def _writes(self, dialogue: Dialogue, feature: str, at: int, key: str) -> bool:
        # Reasoning is written in a conversation's last turn at least; earlier ones may lose it, see labels.py.
        upto = at + 1 if key == "reasoning_content" else len(dialogue.messages)
        messages, tools = copy.deepcopy(dialogue.messages[:upto]), copy.deepcopy(dialogue.tools)
        if key == "tools" and tools:
            tools[-1].get("function", tools[-1])["name"] = PROBE
        elif key == "tool_calls":
            calls = messages[at][key]
            number = len(calls) - 1 if feature == SEVERAL_CALLS else 0
            calls[number] = copy.deepcopy(calls[number])
            calls[number].get("function", calls[number])["name"] = PROBE
        else:
            messages[at][key] = PROBE
        return PROBE in self._template.variant(dialogue.row, messages, tools)


def _features(dialogue: Dialogue) -> Iterator[tuple[str, int, str]]:
    """(feature, message, key) of what a template may not know."""
    if dialogue.tools:
        yield "tools", 0, "tools"
    for at, message in enumerate(dialogue.messages):
        role = message["role"]
        if role == "system":
            yield "system messages", at, "content"
        elif role == "tool":
            yield "tool messages", at, "content"
        if len(message) == 2:
            continue
        calls = message.get("tool_calls")
        if calls:
            yield "tool_calls", at, "tool_calls"
            if len(calls) > 1:
                yield SEVERAL_CALLS, at, "tool_calls"
            if message.get("content", "").strip():
                yield "content beside tool_calls", at, "content"
        if message.get("reasoning_content"):
            yield "reasoning_content", at, "reasoning_content"
        if message.get("name"):
            yield f"name of a {role} message", at, "name"


def _left_out(dialogue: Dialogue, feature: str) -> DataError:
    return DataError(
        f"the row has {feature}, and the chat template leaves that out without a word",
        where=dialogue.row.where,
        fix=f"choose a chat template that writes {feature} with data.template, or take that out of the row",
    )
