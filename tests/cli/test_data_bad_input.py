"""Data that cannot be used: the exit code, and a message that says where (file, row, column) and what, on a line each."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
GOOD = {"messages": [USER, ANSWER]}
CUT_OFF = gzip.compress(b"".join(json.dumps({"text": os.urandom(40).hex()}).encode() + b"\n" for _ in range(3000)))[:-40]


def lines(*rows: Any) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def messages(*turns: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


@pytest.fixture
def refused(luthier: Run, write_config: Write, tmp_path: Path) -> Callable[..., str]:
    """`refused(name, content, **data) -> str`: what `plan` says of a file's data, with the file's folder taken out."""

    def run(name: str | None, content: bytes = b"", *, verb: str = "plan", code: int = 4, **data: Any) -> str:
        source: dict[str, Any] = {}
        if name is not None:
            (tmp_path / name).write_bytes(content)
            source = {"train": [str(tmp_path / name)]}
        config = write_config(data={"max_length": 200} | source | data)
        got, out, err = luthier(*verb.split(), config, "--json")
        assert got == code, err
        assert "Traceback" not in err
        said = json.loads(out)
        assert said["exit_code"] == code
        if "error" in said:
            assert said["where"]
            assert said["fix"]
        return err.replace(f"{tmp_path}/", "")

    return run


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.jsonl", lines(GOOD, '{"messages": }'), "a.jsonl:2:", "bad JSON: Expecting value (column 14)"),
        ("a.jsonl", lines(*[GOOD] * 30, "{"), "a.jsonl:31:", "bad JSON"),
        ("a.json", b'[{"instruction": "a", "output": "b"}\n{}]', "a.json:2:", "bad JSON"),
        ("a.json", lines(GOOD, GOOD), "a.json:1:", "say `type: jsonl`"),
        ("a.jsonl", lines(GOOD, [1]), "a.jsonl:2:", "the row is a list, not an object"),
        ("a.jsonl", lines(GOOD) + b'{"messages": "\xe9"}\n', "a.jsonl:2:", "is not UTF-8: 0xe9 at character 15"),
        ("a.jsonl", lines(GOOD).decode().encode("utf-16"), "a.jsonl:1:", "say `encoding: utf-16`"),
        ("a.csv", b"instruction,output\na,b\nc\n", "a.csv:3:", "has 1 cell, and the header 2"),
        ("a.jsonl", lines({"instruction": "a", "output": 7}), "a.jsonl:1, column output:", "must be a string, not a number"),
        ("a.jsonl", lines(GOOD, {"messages": "x"}), "a.jsonl:2, column messages:", "must be a list of messages"),
        (
            "a.jsonl",
            lines(GOOD, messages(USER, ANSWER | {"content": " "})),
            "column messages[1].content:",
            "an empty answer",
        ),
        (
            "a.jsonl",
            lines(messages(USER, ANSWER | {"role": "bot"})),
            "a.jsonl:1, column messages[1].role:",
            "'bot' is no role",
        ),
        (
            "a.jsonl",
            lines({"conversations": [{"from": "human", "value": "a"}, {"from": "bob", "value": "b"}]}),
            "a.jsonl:1, column conversations[1].from:",
            "'bob' is no role",
        ),
        (
            "a.jsonl",
            lines(GOOD, messages({"role": "user", "content": [{"type": "image", "image": "a.png"}]}, ANSWER)),
            "a.jsonl:2, column messages[0].content[0]:",
            "the model reads text only",
        ),
        ("a.jsonl", lines(GOOD, GOOD | {"images": ["a.png"]}), "a.jsonl:2, column images:", "the model reads text only"),
        (
            "a.jsonl",
            lines({"instruction": "<image>Name it.", "output": "A cat.", "image": "a.png"}),
            "a.jsonl:1, column image:",
            "the model reads text only",
        ),
        ("a.jsonl", b"", "a.jsonl:", "holds no rows"),
        ("a.jsonl", lines({"foo": 1}), "a.jsonl:1:", "no format fits the columns foo"),
        ("a.jsonl.gz", CUT_OFF, "a.jsonl.gz:", "the archive is damaged or cut off after line"),
        ("a.parquet", b"PAR1 and then nothing", "a.parquet:", "is no parquet file, or damaged"),
        ("a.pdf", b"%PDF", "a.pdf:", "cannot tell from the name how a .pdf is written"),
    ],
)
def test_a_file_that_cannot_be_used(refused: Callable[..., str], name: str, content: bytes, where: str, what: str) -> None:
    said = refused(name, content)
    assert where in said
    assert what in said


def test_empty_columns_of_media_are_no_fault(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_bytes(lines(GOOD | {"images": []}, GOOD | {"images": None}))
    code, _, err = luthier("plan", write_config(data={"train": [str(rows)], "max_length": 64}))
    assert code == 0, err


def test_sources_that_are_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "none: holds no data file" in refused(None, train=[str(tmp_path / "none")])
    assert "rows.json: there is no such data file\n  fix: did you mean rows.jsonl?" in refused(
        None, train=[str(tmp_path / "rows.json")]
    )
    assert "no-such/set (train): cannot be read" in refused(None, train=[{"hub": "no-such/set"}])
    assert "data.train: names no source" in refused(None, train=[])


def test_a_pipe_is_refused_and_not_waited_for(refused: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is a pipe, and rows are read more than once" in refused(None, train=[str(tmp_path / "pipe.jsonl")])


def test_a_path_outside_an_allowed_folder(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_DATA_FOLDERS", str(tmp_path / "allowed"))
    assert "a.jsonl: is outside the folders that LUTHIER_DATA_FOLDERS allows" in refused("a.jsonl", lines(GOOD))


def test_entries_of_dataset_info(refused: Callable[..., str], tmp_path: Path) -> None:
    entries = {
        "rows": {"file_name": "rows.jsonl"},
        "seen": {"file_name": "rows.jsonl", "columns": {"prompt": "instruction", "images": "images"}},
        "away": {"file_name": "../rows.jsonl"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    for name, where, what in (
        ("row", "dataset_info.json:", "there is no entry 'row'\n  fix: did you mean rows?"),
        ("seen", "dataset_info.json, seen, columns.images:", "holds images"),
        ("away", "dataset_info.json, away, file_name:", "leads out of the folder"),
    ):
        said = refused(None, train=[{"dataset": name}], dataset_info=str(tmp_path))
        assert where in said
        assert what in said


@pytest.mark.parametrize("verb", ["plan", "train", "data inspect"])
@pytest.mark.parametrize(
    ("rows", "data", "what", "fix"),
    [
        ([messages(USER, ANSWER | {"train": False})], {}, "1 dropped (no token to learn)", "`train: false`"),
        ([GOOD] * 3, {"max_length": 8}, "3 dropped (longer than 8 tokens)", "raise data.max_length: the shortest row"),
        ([messages(USER, {**ANSWER, "content": ""})], {"bad_rows": "drop"}, "is an empty answer)", "data.bad_rows: error"),
    ],
)
def test_nothing_left_is_known_before_anything_runs(
    refused: Callable[..., str], verb: str, rows: list[Any], data: dict[str, Any], what: str, fix: str
) -> None:
    said = refused("a.jsonl", lines(*rows), verb=verb, **data)
    assert "a.jsonl: no row is left to learn from" in said
    assert what in said
    assert fix in said
    assert "loading" not in said


def test_holding_out_everything(refused: Callable[..., str]) -> None:
    for verb in ("plan", "train", "data inspect"):
        said = refused("a.jsonl", lines(GOOD, messages(ANSWER | USER, ANSWER)), verb=verb, eval=2)
        assert "data.eval: holding out 2 of 2 rows leaves none to train on" in said


@pytest.mark.parametrize(
    ("template", "where", "what", "fix"),
    [
        ("{% for m in messages %}\n{{ m.content }\n{% endfor %}", "t.jinja:2:", "is no Jinja", "correct the file"),
        ("{{ shout(messages[0].content) }}", "a.jsonl:1:", "'shout' is undefined", "correct the chat template"),
        (
            "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}",
            "a.jsonl:1:",
            "lacks the prefix property: assistant turn 1",
            "use a chat template whose earlier turns",
        ),
    ],
)
def test_faulty_templates(
    refused: Callable[..., str], tmp_path: Path, template: str, where: str, what: str, fix: str
) -> None:
    (tmp_path / "t.jinja").write_text(template)
    said = refused("a.jsonl", lines(GOOD), template=str(tmp_path / "t.jinja"))
    assert where in said
    assert what in said
    assert fix in said


def test_templates_that_do_not_fit(refused: Callable[..., str]) -> None:
    assert "there is no chat template 'chatlm'" in refused("a.jsonl", lines(GOOD), template="chatlm")
    twice = messages(USER, USER, ANSWER)
    said = refused("a.jsonl", lines(GOOD, twice), template="mistral")
    assert "a.jsonl:2: the chat template refuses the conversation (user, user, assistant)" in said
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    said = refused("a.jsonl", lines(GOOD, GOOD | {"tools": [tool]}))
    assert "a.jsonl:2: the row has tools, and the chat template leaves that out" in said


def test_keys_that_nothing_reads(refused: Callable[..., str], tmp_path: Path) -> None:
    sources = [{"path": str(tmp_path / "rows.jsonl"), "weight": 2}]
    said = refused(None, code=2, train=sources, stop="all_exhausted")
    assert "data.train[0].weight: sources are put one after another" in said
    assert "data.stop: sources are put one after another" in said


def test_a_picture_that_is_none(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    code, _, err = luthier("data", "inspect", write_config(), "--png", tmp_path / "lengths.txt")
    assert code == 2, err
    assert "lengths.txt: is no name of a PNG picture" in err


def test_a_warning_of_the_plan_is_not_said_again(luthier: Run, write_config: Write, rows: Path) -> None:
    rows.write_bytes(rows.read_bytes() + lines(messages(USER, USER, ANSWER)))
    code, _, err = luthier("train", write_config())
    assert code == 0, err
    assert err.count("1 of 13 rows: roles do not alternate") == 1
