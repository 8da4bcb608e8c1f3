"""The demo's rows: the same on every machine, all commands in both parts, nothing of the held-out rows in training."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from luthier.demo.intents import INTENTS
from luthier.demo.phrases import POOLS
from luthier.demo.task import HELD_OUT_ROWS, TRAIN_ROWS, Example, examples, pool_of, slots, write_task

TRAIN = examples("train", TRAIN_ROWS)
HELD_OUT = examples("held_out", HELD_OUT_ROWS)


def test_numbers_of_rows_and_intents() -> None:
    assert (len(TRAIN), len(HELD_OUT)) == (800, 100)
    assert len({intent.name for intent in INTENTS}) == len(INTENTS) >= 12


def test_written_files_are_the_same_in_another_process(tmp_path: Path) -> None:
    here = write_task(tmp_path / "here")
    # Another hash seed: nothing may depend on the order of a set.
    command = [sys.executable, "-m", "luthier.demo.task", str(tmp_path / "there")]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "7"})
    for path in here:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest == hashlib.sha256((tmp_path / "there" / path.name).read_bytes()).hexdigest()
    assert examples("train", 50, seed=1) != examples("train", 50, seed=2)


def test_rows_are_messages_with_a_compact_json_answer(tmp_path: Path) -> None:
    train, held_out = write_task(tmp_path)
    for path, count in ((train, 800), (held_out, 100)):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        for row in rows:
            assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
            answer = row["messages"][2]["content"]
            command = json.loads(answer)
            assert answer == json.dumps(command, separators=(",", ":"), ensure_ascii=False)
            assert next(iter(command)) == "intent"


def test_no_request_stands_twice() -> None:
    requests = Counter(example.request.lower() for example in TRAIN + HELD_OUT)
    assert [request for request, count in requests.items() if count > 1] == []


def test_every_intent_is_in_both_parts_about_equally_often() -> None:
    for rows in (TRAIN, HELD_OUT):
        counts = Counter(example.intent for example in rows)
        assert set(counts) == {intent.name for intent in INTENTS}
        assert max(counts.values()) - min(counts.values()) <= 1


def test_phrasings_are_disjoint_and_all_used() -> None:
    train, held_out = ({example.template for example in rows} for rows in (TRAIN, HELD_OUT))
    assert train == {template for intent in INTENTS for template in intent.train}
    assert held_out == {template for intent in INTENTS for template in intent.held_out}
    assert not train & held_out
    # Two phrasings that differ in punctuation or capitals only would be the same one.
    plain = [re.sub(r"[^a-z{}]+", " ", template.lower()).strip() for template in (*train, *held_out)]
    assert len(set(plain)) == len(plain)


@pytest.mark.parametrize("name", sorted(name for name, pool in POOLS.items() if not pool.closed))
def test_open_values_are_disjoint(name: str) -> None:
    pool = POOLS[name]
    train, held_out = ({value for _, value in pairs} for pairs in (pool.train, pool.held_out))
    shared = train & held_out
    if name == "time":
        shared = {time for time in shared if not str(time).endswith(":00")}  # full hours are a closed set
    assert not shared
    assert held_out


def test_open_values_of_the_rows_are_disjoint() -> None:
    """Over the commands themselves, not over the pools they should have come from."""
    keys = {name for name, pool in POOLS.items() if not pool.closed} - {"time"}

    def values(rows: list[Example]) -> set[tuple[str, str]]:
        commands = [json.loads(example.command) for example in rows]
        pairs = [(key, value) for command in commands for key, value in command.items() if key in keys]
        return {(key, str(one)) for key, value in pairs for one in (value if isinstance(value, list) else [value])}

    assert not values(TRAIN) & values(HELD_OUT)
    assert len(values(HELD_OUT)) > 50


def test_commands_follow_from_the_requests() -> None:
    """What the request says, found again in it without the generator: clock times by the clock, other words as they are."""
    for example in TRAIN + HELD_OUT:
        command = json.loads(example.command)
        for key, value in command.items():
            if key == "intent":
                continue
            if key == "time":
                assert value == clock(example.request)
            elif key == "mode":
                assert {"walking": "on foot", "driving": "by car", "cycling": "by bike", "transit": "by bus"}[
                    value
                ] in example.request
            else:
                for one in value if isinstance(value, list) else [value]:
                    assert str(one).lower() in example.request.lower(), (example.request, example.command)


def clock(request: str) -> str:
    """The one time of day in a request, as HH:MM by the rules of the 12-hour clock."""
    short = re.search(r"\b(\d+) (am|pm)\b", request)
    if short:
        return f"{int(short[1]) % 12 + (12 if short[2] == 'pm' else 0):02d}:00"
    (hour, minute), *more = re.findall(r"\b(\d+):(\d\d)\b", request)
    assert not more
    return f"{int(hour):02d}:{minute}"


def test_conversions_stay_within_one_measure() -> None:
    length = {"miles", "feet", "inches", "kilometers", "meters", "centimeters"}
    weight = {"pounds", "ounces", "kilograms", "grams"}
    volume = {"gallons", "cups", "liters", "milliliters"}
    for example in TRAIN + HELD_OUT:
        command = json.loads(example.command)
        if command["intent"] == "convert_units":
            units = {command["from"], command["to"]}
            assert any(units <= measure for measure in (length, weight, volume)), example.request


def test_slots_of_all_phrasings_have_a_pool_and_a_key() -> None:
    for intent in INTENTS:
        for template in (*intent.train, *intent.held_out):
            assert {pool_of(slot) for slot in slots(template)} <= set(intent.keys)
            assert all(pool_of(slot) in POOLS for slot in slots(template))


def test_more_rows_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values left"):
        examples("held_out", 5000)


def test_generator_needs_the_standard_library_only() -> None:
    code = (
        "import sys; from luthier.demo import task; task.examples('train', 32);"
        "ours = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names);"
        "print(sorted(name for name in ours if name in {'torch', 'transformers', 'numpy', 'yaml', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
