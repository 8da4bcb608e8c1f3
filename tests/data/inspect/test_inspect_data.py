"""`luthier data inspect`: the rows, lengths, batches and repeats it tells of, and the page and picture it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml

import luthier
from luthier.cli import main
from luthier.core.data.inspect.measure import measure_lengths

TURN = "<|{}|>"


@pytest.fixture
def write(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Callable[..., Path]:
    """`write(rows, max_length=..., ...)`: a configuration over the tiny llama."""

    def make(rows: list[Any], *, kind: str = "auto", stage: Any = "sft", batch_tokens: int = 128, **data: Any) -> Path:
        source = tmp_path / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = {
            "model": str(tiny_folder("llama")),
            "data": {"train": [{"path": str(source), "kind": kind}], "max_length": 200, **data},
            "stage": stage,
            "adapter": "lora",
            "train": {"batch_tokens": batch_tokens},
            "output": str(tmp_path / "run"),
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return make


def pairs(*texts: tuple[str, str]) -> list[Any]:
    return [{"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]} for ask, say in texts]


def test_runs_are_the_prompt_and_the_answer(write: Callable[..., Path], tiny_tokenizer: Any) -> None:
    rows = pairs(("Hi", "Hello"), ("One", "Two"))
    found = luthier.inspect_data(write(rows), rows=1)
    (row,) = found.rows
    (sequence,) = row.sequences
    turns = rows[0]["messages"]
    prompt = tiny_tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    whole = tiny_tokenizer.apply_chat_template(turns, tokenize=False)
    assert "".join(run.text for run in sequence.runs) == whole
    assert sequence.runs[0].text == prompt
    assert not sequence.runs[0].trained
    assert sequence.runs[1].trained
    assert sequence.runs[1].text.startswith("Hello")
    assert sequence.tokens == len(tiny_tokenizer.apply_chat_template(turns)["input_ids"])
    assert row.value is None


def test_a_pair_has_both_answers_and_its_margin(write: Callable[..., Path]) -> None:
    rows = [{"prompt": "Hi", "chosen": "Hello", "rejected": "No", "score_chosen": 3.0, "score_rejected": 1.0}]
    (row,) = luthier.inspect_data(write(rows, kind="conversation")).rows
    assert [sequence.name for sequence in row.sequences] == [""]
    assert row.sequences[0].runs[1].text.startswith("Hello")


def test_a_prompt_has_its_reference(write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "6 times 7?", "answer": "4<2>"}, {"prompt": "and 7 times 7?"}]
    path = write(rows, stage={"use": "grpo", "reward": "json_valid"})
    found = luthier.inspect_data(path, rows=2)
    assert [row.reference for row in found.rows] == ["4<2>", None]
    assert [row.sequences[0].trained for row in found.rows] == [0, 0]
    assert main(["data", "inspect", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.count("reference  4<2>") == 1
    page = (tmp_path / "page.html").read_text()
    assert page.count("reference: 4&lt;2&gt;") == page.count("reference: ") == 1


def test_repeats_are_counted_and_begin_with_what_is_learned(write: Callable[..., Path]) -> None:
    rows = pairs(
        ("a", "seldom"), ("b", "often said"), ("b", "often said"), ("c", "twice"), ("b", "often said"), ("c", "twice")
    )
    found = luthier.inspect_data(write(rows))
    assert found.report.duplicates == 3
    assert [(one.times, one.beginning) for one in found.repeated] == [(3, "often said"), (2, "twice")]


def test_batches_padded_and_packed(write: Callable[..., Path]) -> None:
    rows = pairs(*[(f"{n}", "x" * (20 + n)) for n in range(30)])
    found = luthier.inspect_data(write(rows, packing=True))
    batching = found.batching
    assert batching.packing
    assert batching.batch_tokens == 128
    assert batching.efficiency == pytest.approx(found.report.tokens / (128 * batching.packed_batches))
    assert batching.packed_batches <= batching.padded_batches
    assert 0 <= batching.padding < 1


def test_lengths_against_numpy() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, size=400)
    found = measure_lengths(lengths)
    assert (found.shortest, found.longest) == (lengths.min(), lengths.max())
    assert found.percentile_95 == np.percentile(lengths, 95)
    assert sum(found.counts) == 400
    assert len(found.counts) <= 20
    for begin, end, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert count == ((lengths >= begin) & (lengths < end)).sum()
    one = measure_lengths(np.array([1]))
    assert (one.edges, one.counts) == ((0, 1, 2), (0, 1))


def test_json_is_one_document_with_the_report(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*pairs(("Hi", "Hello")), *pairs(("long", "y" * 300))]
    assert main(["data", "inspect", str(write(rows)), "--json", "--rows", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"]["rows"] == 2
    assert found["report"]["dropped"] == {"longer than 200 tokens": 1}
    assert len(found["rows"]) == 1
    assert found["report"]["sources"][0]["format"] == "messages"


class Text(HTMLParser):
    """The text in `mark` elements, and every address that the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.marked, self.inside, self.links = "", False, []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.inside = tag == "mark" or (self.inside and tag != "pre")
        self.links += [value for name, value in attributes if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "mark"

    def handle_data(self, data: str) -> None:
        self.marked += data if self.inside else ""


def test_the_page_is_whole_and_escapes(write: Callable[..., Path], tmp_path: Path) -> None:
    answer = "<script>alert('&')</script>"
    page, picture = tmp_path / "deep" / "page.html", tmp_path / "lengths.png"
    command = ["data", "inspect", str(write(pairs(("Hi", answer)))), "--html", str(page), "--png", str(picture)]
    assert main(command) == 0
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    parsed = Text()
    parsed.feed(text)
    assert answer in parsed.marked
    assert parsed.links == []
    image = matplotlib.image.imread(picture)
    assert image.shape[:2] == (round(4.2 * 130), round(7.2 * 130))
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 10


def test_the_terminal_shows_what_is_learned(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(write(pairs(("Hi", "Hello"), ("Hi", "Hello"))))]) == 0
    out = capsys.readouterr().out
    assert "⟦Hello" in out
    assert "repeated  2 times: Hello" in out
    assert "an epoch" in out


def test_control_characters_of_a_row_do_not_reach_the_terminal(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pairs(("clear\x1b[2J", "title\x1b]0;x\x07 \x9b2J\nend"))
    assert main(["data", "inspect", str(write(rows * 2))]) == 0
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(out)
    assert r"clear\x1b[2J" in out
    assert "\nend" in out


def test_a_page_that_cannot_be_written(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["data", "inspect", str(write(pairs(("a", "b")))), "--html", str(tmp_path / "file" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_of_a_stream_the_first_window(write: Callable[..., Path]) -> None:
    config = luthier.load_config(
        write(pairs(*[(f"{n}", "x") for n in range(30)]), streaming=True, window=10), ["train.max_steps=2"]
    )
    said: list[str] = []
    found = luthier.inspect_data(config, notice=said.append)
    assert found.report.rows == 10
    assert any("first 10 rows of each source" in text for text in said)
