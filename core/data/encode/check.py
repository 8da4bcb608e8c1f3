"""The user's own first rows, done twice: the tokens to train on must be those that inference gives.

Encoding takes faster ways than the tokenizer's own methods. Here each encoder's first rows are written by these methods, one
by one, and compared turn by turn. A difference would be a fault of ours, and training on it would be worse than stopping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.data.encode.dialogue import Dialogue
from luthier.core.data.encode.labels import Labelled
from luthier.core.data.sources import SourceRow
from luthier.core.errors import DataError

FIRST_ROWS: Final = 8
LONGEST: Final = 20_000


class FirstRows:
    """Compares the first `FIRST_ROWS` rows it is given, of up to `LONGEST` tokens. Raises DataError naming row and turn."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self._options = dict(options or {})
        self._left = FIRST_ROWS

    def conversation(self, dialogue: Dialogue, labelled: Labelled) -> None:
        """The whole conversation, and the prompt before each answer that is learned."""
        if not self._takes(labelled.ids):
            return
        if self._inference(dialogue, len(dialogue.messages), prompt=False) != list(labelled.ids):
            raise _differ(dialogue.row, "the conversation")
        for at, count in labelled.prompts:
            if self._inference(dialogue, at, prompt=True) != list(labelled.ids[:count]):
                raise _differ(dialogue.row, f"the prompt of messages[{at}]")

    def prompt(self, dialogue: Dialogue, ids: Sequence[int]) -> None:
        """A prompt, which ends by asking for an answer."""
        if self._takes(ids) and self._inference(dialogue, len(dialogue.messages), prompt=True) != list(ids):
            raise _differ(dialogue.row, "the prompt")

    def text(self, row: SourceRow, text: str, ids: Sequence[int]) -> None:
        """A text with the special tokens that the tokenizer puts around it."""
        if self._takes(ids) and list(self._tokenizer(text, verbose=False)["input_ids"]) != list(ids):
            raise _differ(row, "the text")

    def _takes(self, ids: Sequence[int]) -> bool:
        if not self._left or len(ids) > LONGEST:
            return False
        self._left -= 1
        return True

    def _inference(self, dialogue: Dialogue, upto: int, *, prompt: bool) -> list[int]:
        encoded = self._tokenizer.apply_chat_template(
            dialogue.messages[:upto], tools=dialogue.tools, add_generation_prompt=prompt, return_dict=True, **self._options
        )
        return list(encoded["input_ids"])


def _differ(row: SourceRow, what: str) -> DataError:
    return DataError(
        f"the tokens of {what} are not those that the tokenizer gives at inference",
        where=row.where,
        fix="this is a fault of Luthier, not of the row: please report it, with the name of the model",
    )
