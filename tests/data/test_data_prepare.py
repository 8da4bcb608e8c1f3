"""From files to examples: every row kept, held out or dropped, and counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.config.schema import RunConfig, SourceConfig
from luthier.core.data import Examples, PreparedData, prepare
from luthier.core.errors import DataError
from luthier.core.serial import to_plain

Write = Callable[..., Path]
Config = Callable[..., RunConfig]
Chat = Callable[..., dict[str, Any]]
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def run(formats: Any, tiny_tokenizer: Any) -> Callable[[RunConfig], PreparedData]:
    return lambda config: prepare(config, formats, tiny_tokenizer, kind="conversation")


def contents(examples: Examples) -> list[tuple[int, ...]]:
    return [tuple(example["input_ids"].tolist()) for example in examples]


def test_counts_add_up(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    # <|user|> + n + <eos>\n + <|assistant|> + m + <eos>\n: n + m + 6 tokens, m + 1 of them learned.
    sizes = [(5, 3), (1, 1), (40, 40), (2, 9), (50, 7), (4, 4)]
    path = jsonl([chat("u" * n, "a" * m) for n, m in sizes])
    report = run(config(path, max_length=60)).report
    kept = [(n, m) for n, m in sizes if n + m + 6 <= 60]
    assert (report.rows, report.kept, report.held_out) == (6, 4, 0)
    assert report.dropped == {"longer than 60 tokens": 2}
    assert report.tokens == sum(n + m + 6 for n, m in kept)
    assert report.trained_tokens == sum(m + 1 for _, m in kept)
    assert report.longest == 2 + 9 + 6
    assert report.labels_from == "the template's generation marks"
    assert report.warnings == ("2 of 6 rows (33%) were dropped: 2 dropped (longer than 60 tokens)",)
    assert json.loads(json.dumps(to_plain(report)))["dropped"] == {"longer than 60 tokens": 2}


def test_five_per_cent_dropped_is_no_warning(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    rows = [chat(str(n), "a") for n in range(19)]
    assert run(config(jsonl([*rows, chat("u" * 99, "a")]), max_length=30)).report.warnings == ()


def test_examples_give_ids_and_labels(run: Any, jsonl: Write, config: Config, chat: Chat, tiny_tokenizer: Any) -> None:
    train = run(config(jsonl([chat("hi", "you"), chat("a", "b")]))).train
    ids = tiny_tokenizer.apply_chat_template(chat("hi", "you")["messages"])["input_ids"]
    assert train[0]["input_ids"].tolist() == ids
    assert train[0]["labels"].tolist() == [-100] * 6 + ids[6:10] + [-100]
    assert train.lengths.tolist() == [len(ids), 8]
    assert contents(train)[1] == tuple(train[-1]["input_ids"].tolist())
    assert train.stores[0].ids.dtype == np.int32
    with pytest.raises(IndexError):
        train[2]


def test_all_tokens_but_the_first(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    prepared = run(config(jsonl([chat("hi", "you"), chat("a", "b")]), train_on="all"))
    assert prepared.report.trained_tokens == prepared.report.tokens - 2
    assert prepared.train[0]["labels"][0] == -100


@pytest.mark.parametrize(("part", "held"), [(0.25, 10), (7, 7), (0, 0), (0.0, 0), (0.001, 1)])
def test_held_out_rows_depend_on_content_and_seed_alone(
    run: Any, jsonl: Write, config: Config, chat: Chat, part: float | int, held: int
) -> None:
    rows = [chat(f"question {number}", "answer") for number in range(40)]
    first = run(config(jsonl(rows), eval=part, seed=3))
    assert (len(first.eval), len(first.train), first.report.held_out) == (held, 40 - held, held)
    assert not set(contents(first.eval)) & set(contents(first.train))
    rows = rows[::-1][20:] + rows[::-1][:20]
    again = run(config(jsonl([{"id": number} | row for number, row in enumerate(rows)]), eval=part, seed=3))
    assert set(contents(again.eval)) == set(contents(first.eval))
    assert contents(again.train) != contents(first.train)
    if held > 1:
        other = run(config(jsonl(rows), eval=part, seed=4))
        assert set(contents(other.eval)) != set(contents(first.eval))


def test_copies_stay_on_one_side(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    rows = [chat(f"question {number % 20}", "answer") for number in range(60)]
    prepared = run(config(jsonl(rows), eval=0.2))
    assert len(prepared.eval) == 12
    assert set(Counter(contents(prepared.eval)).values()) == {3}
    assert not set(contents(prepared.eval)) & set(contents(prepared.train))
    same = run(config(jsonl([chat("q", "a")] * 30), eval=0.1))
    assert len(same.eval) == 0
    assert "no row could be held out" in same.report.warnings[0]


@pytest.mark.parametrize("part", [3, 0.99])
def test_holding_out_too_much(run: Any, jsonl: Write, config: Config, chat: Chat, part: float | int) -> None:
    with pytest.raises(DataError, match="holding out 3 of 3 rows leaves none") as caught:
        run(config(jsonl([chat(text, "a") for text in "xyz"]), eval=part))
    assert caught.value.where == "data.eval"


def test_evaluation_sources_of_their_own(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    train = jsonl([chat(text, "a") for text in "xyz"], "train.jsonl")
    held = jsonl([{"instruction": "z", "output": "a"}, {"instruction": "new", "output": "a"}], "held.jsonl")
    prepared = run(config(train, eval=(SourceConfig(path=str(held)),)))
    assert (len(prepared.train), len(prepared.eval), prepared.report.rows) == (3, 2, 5)
    assert prepared.report.warnings == ("1 of 2 held-out rows also stand among the training rows",)
    assert prepared.report.held_out_tokens == (1 + 1 + 6) + (3 + 1 + 6)


def test_several_sources_and_a_limit(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    one = jsonl([chat(text, "a") for text in "xyz"], "one.jsonl")
    two = jsonl([{"instruction": "z", "output": "a"}], "two.jsonl")
    sources = (SourceConfig(path=str(one), rows=2), SourceConfig(path=str(two)))
    whole = config(one)
    prepared = run(replace(whole, data=replace(whole.data, train=sources)))
    assert (prepared.report.rows, len(prepared.train)) == (3, 3)


def test_more_rows_than_are_encoded_at_once(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    lengths = [1 + number % 7 for number in range(1300)]
    train = run(config(jsonl([chat("u" * length, "a") for length in lengths]))).train
    assert train.lengths.tolist() == [length + 7 for length in lengths]


def test_a_fault_deep_in_the_file_names_line_and_column(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    rows = [chat("a", "b") for _ in range(600)]
    rows[555] = {"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}
    path = jsonl(rows)
    with pytest.raises(DataError, match="'bot' is no role") as caught:
        run(config(path))
    assert caught.value.where == f"{path}:556, column messages[1].role"
    assert caught.value.fix.startswith("format messages: messages")
    assert "data.bad_rows: drop" in caught.value.fix


def test_every_row_too_long(run: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    path = jsonl([chat("u" * 20, "a"), chat("u" * 30, "a")])
    with pytest.raises(DataError, match=r"of 2 read, 2 dropped \(longer than 10 tokens\)") as caught:
        run(config(path, max_length=10))
    assert caught.value.where == str(path)
    assert "the shortest row that was dropped has 27 tokens" in caught.value.fix


def test_nothing_to_learn_at_all(run: Any, jsonl: Write, config: Config, chat: Chat, tiny_tokenizer: Any) -> None:
    marks = "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    tiny_tokenizer.chat_template = marks + "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    with pytest.raises(DataError, match=r"of 2 read, 2 dropped \(no token to learn\)") as caught:
        run(config(jsonl([chat("a", "b"), chat("c", "d")])))
    assert "data.train_on: all" in caught.value.fix


def test_answers_without_an_end_are_noted(run: Any, jsonl: Write, config: Config, chat: Chat, tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    tiny_tokenizer.chat_template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    report = run(config(jsonl([chat("a", "b")]))).report
    assert report.labels_from == "prefix comparison"
    assert report.warnings == ("1 of 1 answers end with no end-of-turn token: the model may not learn to stop",)


def test_another_kind_of_data(formats: Any, tiny_tokenizer: Any, jsonl: Write, config: Config, chat: Chat) -> None:
    path = jsonl([chat("a", "b")])
    with pytest.raises(DataError, match="messages hold conversation data, and the stage learns from preference data"):
        prepare(config(path), formats, tiny_tokenizer, kind="preference")


@pytest.mark.parametrize(("name", "rows"), [("alpaca_en_demo.json", 999), ("identity.json", 91)])
def test_demo_data_of_llama_factory(run: Any, config: Config, name: str, rows: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not on this machine")
    prepared = run(config(SHARED / name, eval=0.1, max_length=4096))
    raw = json.loads((SHARED / name).read_text(encoding="utf-8"))
    answers = sum(len(row["output"].encode()) + 1 for row in raw)
    report = prepared.report
    assert (report.rows, report.kept + report.held_out) == (rows, rows)
    assert prepared.train.trained_tokens + prepared.eval.trained_tokens == answers
    assert not set(contents(prepared.train)) & set(contents(prepared.eval))


def test_the_data_worker_is_imported_without_torch() -> None:
    code = "import luthier.core.data, sys; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = "import luthier.plugins.alpaca, luthier.plugins.messages, sys; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
