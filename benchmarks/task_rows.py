"""The demo's requests as every kind of rows, so that each stage can be measured on the same task.

conversation   request and command
text           request and command, one after the other
preference     the command chosen, another row's rejected
unpaired       the command rated good, or another row's rated bad
prompt         the request, its command as the reference
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def as_kind(path: Path, kind: str) -> Path:
    """The conversations of a JSONL file as rows of `kind`, in a file beside it; the file itself for conversations."""
    if kind == "conversation":
        return path
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    made = [convert(row["messages"], rows[number - 1]["messages"], number, kind) for number, row in enumerate(rows)]
    target = path.with_name(f"{path.stem}-{kind}.jsonl")
    target.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return target


def convert(messages: list[Row], other: list[Row], number: int, kind: str) -> Row:
    """One row of `kind`; `other` are the messages of another row, whose command does not answer this request."""
    prompt, answer, wrong = messages[:-1], messages[-1:], other[-1:]
    if kind == "text":
        return {"text": "\n".join(turn["content"] for turn in messages)}
    if kind == "prompt":
        return {"prompt": prompt, "reference": answer[0]["content"]}
    if kind == "preference":
        return {"prompt": prompt, "chosen": answer, "rejected": wrong}
    if kind == "unpaired":
        good = number % 2 == 0
        return {"prompt": prompt, "completion": answer if good else wrong, "label": good}
    raise ValueError(f"no rows of kind {kind!r} are made here")
