"""Conversations written by the tokenizer's chat template, as `apply_chat_template` writes them, many at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final, TypeAlias

from luthier.core.data.encode.dialogue import Dialogue, Messages
from luthier.core.data.encode.tokens import Span
from luthier.core.data.sources import SourceRow
from luthier.core.data.templates import no_template
from luthier.core.errors import DataError

Written: TypeAlias = tuple[str, list[Span]]
OURS: Final = frozenset({"messages", "tools", "add_generation_prompt"})
_GENERATION: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Template:
    """The chat template of a tokenizer with `data.template_options`. Raises DataError when the tokenizer has none.

    marked  whether it marks the answers with `{% generation %}`
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        from transformers import PreTrainedTokenizerBase

        self.tokenizer = tokenizer
        self.options = dict(options)
        self._texts = {tools: self._text(tools=tools) for tools in (False, True)}
        # A class that writes conversations in its own way is asked for texts, and cannot tell about marks.
        self._own_way = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        self.marked = not self._own_way and bool(tokenizer.is_fast) and all(map(_GENERATION.search, self._texts.values()))
        self._variables = {**tokenizer.special_tokens_map, **self.options}
        for name in self.options:
            if name in OURS or not any(re.search(rf"\b{re.escape(name)}\b", text) for text in self.texts):
                raise DataError(
                    "is a variable that the chat template gets from the rows"
                    if name in OURS
                    else "the chat template reads no such variable",
                    where=f"data.template_options.{name}",
                    fix="take it out, or choose a template that has it with data.template",
                )

    @property
    def texts(self) -> list[str]:
        """The templates without tools and with tools: mostly the same."""
        return list(self._texts.values())

    def write(self, dialogues: Sequence[Dialogue], *, marks: bool = False) -> list[Written]:
        """Whole conversations, and with `marks` the characters that the template marks. Raises DataError naming the row."""
        return self._write([(one, one.messages) for one in dialogues], prompt=False, marks=marks)

    def prompts(self, parts: Sequence[tuple[Dialogue, int]]) -> list[str]:
        """What inference would give the model for the first so many messages: they end by asking for an answer."""
        return [text for text, _ in self._write([(one, one.messages[:at]) for one, at in parts], prompt=True)]

    def beginnings(self, parts: Sequence[tuple[Dialogue, int]]) -> list[str]:
        """Only the first so many messages."""
        return [text for text, _ in self._write([(one, one.messages[:at]) for one, at in parts], prompt=False)]

    def variant(self, row: SourceRow, messages: Messages, tools: list[Any] | None) -> str:
        """A single conversation."""
        return self._write([(Dialogue(row, messages, tools), messages)], prompt=False)[0][0]

    def _write(self, parts: list[tuple[Dialogue, Messages]], *, prompt: bool, marks: bool = False) -> list[Written]:
        written: list[Written] = []
        for _, group in groupby(parts, key=lambda part: id(part[0].tools)):
            same = list(group)
            tools = same[0][0].tools
            try:
                written += self._render([messages for _, messages in same], tools, prompt=prompt, marks=marks)
            except Exception:
                for dialogue, messages in same:
                    try:
                        self._render([messages], tools, prompt=prompt, marks=marks)
                    except Exception as error:
                        raise refused(dialogue.row, messages, error) from error
                raise
        return written

    def _render(self, batch: list[Messages], tools: list[Any] | None, *, prompt: bool, marks: bool) -> list[Written]:
        from transformers.utils.chat_template_utils import render_jinja_template

        if self._own_way:
            texts = self.tokenizer.apply_chat_template(
                batch, tools=tools, tokenize=False, add_generation_prompt=prompt, **self.options
            )
            return [(text, []) for text in texts]
        texts, spans = render_jinja_template(
            batch,
            tools=tools,
            chat_template=self._texts[bool(tools)],
            return_assistant_tokens_mask=marks,
            add_generation_prompt=prompt,
            **self._variables,
        )
        return list(zip(texts, spans, strict=True)) if marks else [(text, []) for text in texts]

    def _text(self, *, tools: bool) -> str:
        try:
            text: str = self.tokenizer.get_chat_template(tools=[{}] if tools else None)
        except ValueError as error:
            raise no_template(self.tokenizer) from error
        return text


def refused(row: SourceRow, messages: Messages, error: Exception) -> DataError:
    """The template raised an error, of its own (its words) or by a fault in it; and the row."""
    from jinja2 import TemplateRuntimeError

    roles = ", ".join(message["role"] for message in messages)
    if isinstance(error, TemplateRuntimeError | TypeError):  # what a template refuses itself is a plain TemplateError
        return DataError(
            f"the chat template fails on the conversation ({roles}): {error}",
            where=row.where,
            fix="correct the chat template, or choose another with data.template",
        )
    return DataError(
        f"the chat template refuses the conversation ({roles}): {str(error) or type(error).__name__}",
        where=row.where,
        fix="change the row to roles in an order that the model's template knows, or choose another with data.template",
    )
