"""The demo's task: requests in plain English, each with the JSON command that it stands for.

    wake me at 6:30 tomorrow   ->   {"intent":"set_alarm","time":"06:30","day":"tomorrow"}

800 rows to train on and 100 to hold out, generated from `intents.py` and `phrases.py` with a fixed seed: the same rows on
every machine. Phrasings and open values of the held-out rows never occur in training. Standard library only:

    python -m luthier.demo.task data/
"""

from __future__ import annotations

import json
import random
import string
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from luthier.demo.intents import INTENTS
from luthier.demo.phrases import MEASURES, POOLS, Intent, Value

SYSTEM_MESSAGE: Final = "Answer with one JSON command."
TRAIN_ROWS: Final = 800
HELD_OUT_ROWS: Final = 100
SEED: Final = 0

Part = Literal["train", "held_out"]


@dataclass(frozen=True)
class Example:
    """One request with its command; `template` is the phrasing it was made from."""

    request: str
    command: str
    intent: str
    template: str

    def row(self) -> dict[str, Any]:
        """As the `messages` format has it."""
        turns = (("system", SYSTEM_MESSAGE), ("user", self.request), ("assistant", self.command))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}


def slots(template: str) -> tuple[str, ...]:
    """The slot names of a phrasing, in order."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(template) if name)


def pool_of(slot: str) -> str:
    """`items2` is filled from the same pool as `items`."""
    return slot.rstrip("2")


def examples(part: Part, count: int, seed: int = SEED) -> list[Example]:
    """`count` different examples, spread evenly over intents and phrasings, shuffled.

    The same on every machine for one part, count and seed. Raises ValueError when a phrasing has not so many.
    """
    generator = random.Random(f"{part}-{seed}")  # noqa: S311  data, not secrets
    seen: set[str] = set()
    made: list[Example] = []
    for index in range(count):
        intent = INTENTS[index % len(INTENTS)]
        phrasings = intent.train if part == "train" else intent.held_out
        template = phrasings[index // len(INTENTS) % len(phrasings)]
        made.append(_unseen(intent, template, part, generator, seen))
    generator.shuffle(made)
    return made


def _unseen(intent: Intent, template: str, part: Part, generator: random.Random, seen: set[str]) -> Example:
    for _ in range(1000):
        example = _fill(intent, template, part, generator)
        if example.request.lower() not in seen:
            seen.add(example.request.lower())
            return example
    raise ValueError(f"the phrasing {template!r} of {intent.name} has no values left to make another request of")


def _fill(intent: Intent, template: str, part: Part, generator: random.Random) -> Example:
    said: dict[str, str] = {}
    meant: dict[str, Value] = {}
    for slot in slots(template):
        pool = POOLS[pool_of(slot)]
        values = pool.train if part == "train" else pool.held_out
        said[slot], meant[slot] = generator.choice([pair for pair in values if _goes_with(pair[1], meant.values())])
    request = template.format(**said)
    if generator.random() < 0.5:
        request = request[0].upper() + request[1:]
    return Example(request, _command(intent, meant), intent.name, template)


def _goes_with(value: Value, others: Collection[Value]) -> bool:
    """Not said twice, and of one measure with the unit that is to be converted."""
    measures = {MEASURES[word] for word in (value, *others) if word in MEASURES}
    return value not in others and len(measures) <= 1


def _command(intent: Intent, meant: dict[str, Value]) -> str:
    """Compact JSON, keys in the intent's order; several items make a list."""
    command: dict[str, Any] = {"intent": intent.name}
    for key in intent.keys:
        if key == "items":
            command[key] = [value for slot, value in meant.items() if pool_of(slot) == "items"]
        elif key in meant:
            command[key] = meant[key]
    return json.dumps(command, separators=(",", ":"), ensure_ascii=False)


def write_rows(path: Path, rows: Sequence[Example]) -> None:
    """One row per line, in the `messages` format."""
    path.write_text("".join(json.dumps(example.row(), ensure_ascii=False) + "\n" for example in rows), encoding="utf-8")


def write_task(folder: Path) -> tuple[Path, Path]:
    """Write train.jsonl and held_out.jsonl into `folder`, made if need be; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = folder / "train.jsonl", folder / "held_out.jsonl"
    write_rows(train, examples("train", TRAIN_ROWS))
    write_rows(held_out, examples("held_out", HELD_OUT_ROWS))
    return train, held_out


if __name__ == "__main__":
    for written in write_task(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
        print(written)
