"""The encoders of everything that a chat template writes: conversations, preferences, rated answers, prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from luthier.core.config.schema import AUTO, DataConfig
from luthier.core.contracts import DataKind
from luthier.core.data.encode.check import FirstRows
from luthier.core.data.encode.dialogue import NOT_ALTERNATING, Dialogue, TrainOn, dialogue_of
from luthier.core.data.encode.features import Features
from luthier.core.data.encode.fingerprint import fingerprint
from luthier.core.data.encode.labels import Labelled, Labeller
from luthier.core.data.encode.lengths import Lengths
from luthier.core.data.encode.result import Encoded, Encoder
from luthier.core.data.encode.template import Template
from luthier.core.data.encode.tokens import tokens_of
from luthier.core.data.sources import SourceRow
from luthier.core.extensions import Row
from luthier.core.frozen import thaw

SAME_ANSWERS: Final = "chosen and rejected are the same tokens"


class ChatEncoder(Encoder):
    """What they share. Raises DataError for a tokenizer without a chat template, and for options that are impossible."""

    def __init__(self, tokenizer: Any, data: DataConfig) -> None:
        options = thaw(data.template_options)
        self.template = "the model's own" if data.template == AUTO else data.template
        self._template = Template(tokenizer, options)
        self._tokens = tokens_of(tokenizer)
        self._data = data
        self._lengths = Lengths(data, self.kind, tokenizer.bos_token_id)
        self._labeller = Labeller(
            self._template, self._tokens, skip_beyond=self._lengths.skip_beyond, drop_bad=data.bad_rows == "drop"
        )
        self._features = Features(self._template)
        self._check = FirstRows(tokenizer, options)
        self.labels_from = self._labels_from()

    def fingerprint(self) -> str:
        """As Encoder says."""
        return fingerprint(self._tokens.tokenizer, self.kind, self._data, self._template)

    def _labels_from(self) -> str:
        return "the template's generation marks" if self._template.marked else "prefix comparison"

    def _dialogue(self, source: SourceRow, row: Row, completion: str = "completion") -> Dialogue:
        return dialogue_of(
            source, row["messages"], row.get(completion) or (), tools=row.get("tools"), system=self._data.system
        )

    def _notes(self, dialogue: Dialogue) -> tuple[str, ...]:
        notes = self._features.check(dialogue)
        return notes if dialogue.alternates() else (*notes, NOT_ALTERNATING)

    def _label(self, dialogues: Sequence[Dialogue], train_on: TrainOn) -> tuple[list[Labelled], list[tuple[str, ...]]]:
        """Tokens and labels, and the notes of each."""
        notes = [self._notes(dialogue) for dialogue in dialogues]
        labelled = self._labeller.label(dialogues, train_on)
        for dialogue, one in zip(dialogues, labelled, strict=True):
            self._check.conversation(dialogue, one)
        return labelled, notes


class ConversationEncoder(ChatEncoder):
    """`data.train_on` says which answers are learned."""

    kind: DataKind = "conversation"

    def encode(self, rows: Sequence[tuple[SourceRow, Row]]) -> list[Encoded]:
        """As Encoder says."""
        dialogues = [self._dialogue(source, row) for source, row in rows]
        labelled, notes = self._label(dialogues, self._data.train_on)
        encoded = [self._lengths.fit([one]) for one in labelled]
        for one, remarks in zip(encoded, notes, strict=True):
            one.notes = remarks
        return encoded

    def _labels_from(self) -> str:
        return "every token" if self._data.train_on == "all" else super()._labels_from()


class PreferenceEncoder(ChatEncoder):
    """Two sequences a row, the chosen answer and the rejected one, each after the prompt; the answers are learned."""

    kind: DataKind = "preference"
    per_row = 2

    def encode(self, rows: Sequence[tuple[SourceRow, Row]]) -> list[Encoded]:
        """As Encoder says."""
        dialogues = [self._dialogue(source, row, key) for source, row in rows for key in ("chosen", "rejected")]
        labelled, notes = self._label(dialogues, "completion")
        found = []
        for number, (_, row) in enumerate(rows):
            chosen, rejected = labelled[2 * number : 2 * number + 2]
            encoded = self._lengths.fit([chosen, rejected])
            encoded.notes = tuple(dict.fromkeys(notes[2 * number] + notes[2 * number + 1]))
            if chosen.ids == rejected.ids:
                encoded.notes += (SAME_ANSWERS,)
            margin = row.get("margin")
            encoded.value = None if margin is None else float(margin)
            found.append(encoded)
        return found


class UnpairedEncoder(ChatEncoder):
    """A prompt and one answer, which is learned, with its rating as the value: 1.0 good, 0.0 bad."""

    kind: DataKind = "unpaired"

    def encode(self, rows: Sequence[tuple[SourceRow, Row]]) -> list[Encoded]:
        """As Encoder says."""
        labelled, notes = self._label([self._dialogue(source, row) for source, row in rows], "completion")
        found = []
        for (_, row), one, remarks in zip(rows, labelled, notes, strict=True):
            encoded = self._lengths.fit([one])
            encoded.value, encoded.notes = float(row["label"]), remarks
            found.append(encoded)
        return found


class PromptEncoder(ChatEncoder):
    """Only what inference is given; nothing is learned. Messages, tools and reference stay beside the tokens."""

    kind: DataKind = "prompt"

    def encode(self, rows: Sequence[tuple[SourceRow, Row]]) -> list[Encoded]:
        """As Encoder says."""
        dialogues = [self._dialogue(source, row) for source, row in rows]
        notes = [self._notes(dialogue) for dialogue in dialogues]
        texts = self._template.prompts([(dialogue, len(dialogue.messages)) for dialogue in dialogues])
        found = []
        wholes = self._tokens.encode(texts)
        for (_, row), dialogue, whole, remarks in zip(rows, dialogues, wholes, notes, strict=True):
            self._check.prompt(dialogue, whole.ids)
            encoded = self._lengths.fit([Labelled(whole.ids)], learns=False)
            encoded.notes = remarks
            kept = {key: row[key] for key in ("tools", "reference") if row.get(key) is not None}
            beside = {"messages": dialogue.messages, **kept}
            encoded.beside = json.dumps(beside, ensure_ascii=False, default=str).encode()
            found.append(encoded)
        return found

    def _labels_from(self) -> str:
        return "nothing is learned from prompts themselves"
