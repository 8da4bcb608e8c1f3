"""A canonical row as the conversation that the chat template gets, and which of its answers are learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Literal, TypeAlias

from luthier.core.data.sources import SourceRow

Messages: TypeAlias = list[dict[str, Any]]
TrainOn: TypeAlias = Literal["completion", "assistant", "last", "all"]
# What a template may know of a message; `train` is ours.
KEYS: Final = ("role", "content", "tool_calls", "reasoning_content", "name", "tool_call_id")

NOT_ALTERNATING: Final = "roles do not alternate"
# Which roles may follow which; the start is "", and system messages do not count.
_FOLLOWS: Final = {"": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}


@dataclass(slots=True)
class Dialogue:
    """One conversation of a row.

    given      how many of the messages are a given prompt, whose answers `completion` does not learn
    untrained  messages that say `train: false`
    extras     whether a message has more than role and content
    """

    row: SourceRow
    messages: Messages
    tools: list[Any] | None
    given: int = 0
    untrained: frozenset[int] = frozenset()
    extras: bool = False

    def learned(self, train_on: TrainOn) -> list[int]:
        """The messages that are answers to learn, in order (`all` is about tokens, not answers)."""
        answers = self.answers()
        if train_on == "last":
            answers = answers[-1:]
        elif train_on == "completion" and self.given:
            answers = [at for at in answers if at >= self.given]
        return [at for at in answers if at not in self.untrained] if self.untrained else answers

    def answers(self) -> list[int]:
        return [at for at, message in enumerate(self.messages) if message["role"] == "assistant"]

    def alternates(self) -> bool:
        """Whether questions and answers take turns, beginning with a question; tool results stand before the answer."""
        return _alternate(tuple([message["role"] for message in self.messages]))


@lru_cache(maxsize=4096)
def _alternate(roles: tuple[str, ...]) -> bool:
    spoken = ["", *(role for role in roles if role != "system")]
    return all(role in _FOLLOWS[before] for before, role in pairwise(spoken))


def dialogue_of(
    row: SourceRow,
    messages: Sequence[Mapping[str, Any]],
    completion: Sequence[Mapping[str, Any]] = (),
    *,
    tools: Iterable[Any] | None = None,
    system: str | None = None,
) -> Dialogue:
    """The messages of a prompt and what follows it, as the template gets them; `system` where there is no system message."""
    made: Messages = []
    if system is not None and not any(message["role"] == "system" for message in messages):
        made.append({"role": "system", "content": system})
    given = len(made) + len(messages) if completion else 0
    untrained: list[int] = []
    extras = False
    for message in (*messages, *completion) if completion else messages:
        if len(message) == 2 and "content" in message:
            made.append({"role": message["role"], "content": message["content"]})
            continue
        if message.get("train") is False:
            untrained.append(len(made))
        plain = {key: message[key] for key in KEYS if message.get(key) is not None}
        extras = extras or len(plain) > 2
        made.append(plain)
    return Dialogue(row, made, list(tools) if tools else None, given, frozenset(untrained), extras)
