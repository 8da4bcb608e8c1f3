"""A source's format with its options, columns under other names, rows taken as another kind, and bad rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from luthier.core.catalog import Offer
from luthier.core.config import parse_config
from luthier.core.data.formats import BadRow, LeftOut, OpenSource, open_source
from luthier.core.errors import DataError, PluginError
from luthier.core.extensions import DataFormat
from luthier.registry.catalog import discover

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "No"}
HUMAN = {"from": "human", "value": "Hi"}
EMPTY = {"from": "gpt", "value": ""}
PAIR = {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}


@pytest.fixture(scope="module")
def installed() -> Mapping[str, Offer[DataFormat]]:
    return discover().formats


@pytest.fixture
def opened(jsonl: Callable[..., Path], installed: Mapping[str, Offer[DataFormat]]) -> Callable[..., OpenSource]:
    """`opened(rows, **source)`: rows in a file, opened as a configuration says."""

    def make(rows: list[Any], *, drop_bad: bool = False, **source: Any) -> OpenSource:
        config = parse_config({"model": "m", "data": {"train": [{"path": str(jsonl(rows)), **source}]}})
        return open_source(config.data.train[0], installed, drop_bad=drop_bad)

    return make


def converted(source: OpenSource) -> list[Any]:
    return [source.convert(row) for row in source.rows.rows()]


def test_columns_under_other_names(opened: Callable[..., OpenSource]) -> None:
    rows = [{"q": "One?", "reply": {"text": "Yes."}, "output": "not this"}]
    source = opened(rows, columns={"instruction": "q", "output": "reply.text"})
    assert source.format.value.name == "alpaca"
    (row,) = converted(source)
    assert row == {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Yes."}]}


def test_an_error_has_the_rows_own_name_of_a_column(opened: Callable[..., OpenSource]) -> None:
    with pytest.raises(BadRow, match="is an empty answer") as caught:
        opened([{"q": "One?", "reply": {"text": " "}}], columns={"instruction": "q", "output": "reply.text"})
    assert caught.value.where.endswith("rows.jsonl:1, column reply.text")
    assert caught.value.reason == "reply.text is an empty answer"


def test_a_column_that_no_row_has(opened: Callable[..., OpenSource]) -> None:
    with pytest.raises(DataError, match="no row has the column 'qestion'") as caught:
        opened([{"question": "a", "answer": "b"}], columns={"instruction": "qestion"})
    assert caught.value.fix == "did you mean 'question'?"
    with pytest.raises(DataError) as caught:
        opened([{"question": "a", "answer": "b"}], columns={"instruction": "zzzz"})
    assert caught.value.fix == "the columns are: answer, question"


def test_options_reach_the_format(opened: Callable[..., OpenSource]) -> None:
    rows = [{"conversations": [{"who": "me", "says": "Hi"}, {"who": "it", "says": "Hello"}]}]
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"}
    assert converted(opened(rows, format={"use": "sharegpt", **tags})) == [{"messages": [USER, ANSWER]}]


def test_an_unknown_option(opened: Callable[..., OpenSource]) -> None:
    with pytest.raises(DataError, match=r"options of the format sharegpt.*format\.role_tga: unknown key") as caught:
        opened([{"conversations": [USER, ANSWER]}], format={"use": "sharegpt", "role_tga": "x"})
    assert "role_tag" in caught.value.fix
    with pytest.raises(DataError, match="unknown key"):
        opened([{"instruction": "a", "output": "b"}], format={"use": "alpaca", "x": 1})


@pytest.mark.parametrize(
    ("rows", "kind", "expected"),
    [
        ([PAIR], "conversation", {"messages": [USER], "completion": [ANSWER]}),
        ([PAIR], "prompt", {"messages": [USER], "reference": "Hello"}),
        ([{"messages": [USER, ANSWER]}], "prompt", {"messages": [USER], "reference": "Hello"}),
        ([{"prompt": [USER], "completion": [ANSWER], "label": True}], "prompt", {"messages": [USER], "reference": "Hello"}),
        ([{"prompt": [USER], "completion": [OTHER], "label": False}], "prompt", {"messages": [USER]}),
        (
            [{"prompt": [USER], "completion": [ANSWER], "label": True}],
            "conversation",
            {"messages": [USER], "completion": [ANSWER]},
        ),
    ],
)
def test_rows_as_another_kind(opened: Callable[..., OpenSource], rows: Any, kind: str, expected: Any) -> None:
    source = opened(rows, kind=kind)
    assert source.kind == kind
    assert converted(source) == [expected]


def test_tools_go_along(opened: Callable[..., OpenSource]) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    (row,) = converted(opened([{"messages": [USER, ANSWER], "tools": [tool]}], kind="prompt"))
    assert row == {"messages": [USER], "reference": "Hello", "tools": [tool]}


def test_answers_that_are_bad_are_left_out(opened: Callable[..., OpenSource]) -> None:
    row = {"prompt": [USER], "completion": [OTHER], "label": False}
    source = opened([row], kind="conversation")
    with pytest.raises(LeftOut) as caught:
        converted(source)
    assert caught.value.reason == "the label is false"


def test_a_kind_that_rows_cannot_become(opened: Callable[..., OpenSource]) -> None:
    with pytest.raises(DataError, match="hold conversation data, which cannot be taken as preference data") as caught:
        opened([{"messages": [USER, ANSWER]}], kind="preference")
    assert caught.value.fix == "`kind` can be conversation, prompt, or left out"


def test_bad_rows_are_an_error_or_left_for_the_count(opened: Callable[..., OpenSource]) -> None:
    rows = [{"messages": [USER, ANSWER]}, {"messages": [USER, {"role": "bot", "content": "x"}]}]
    with pytest.raises(BadRow, match="'bot' is no role") as caught:
        opened(rows)
    assert "data.bad_rows: drop" in caught.value.fix
    source = opened(rows, drop_bad=True)
    with pytest.raises(BadRow) as caught:
        converted(source)
    assert caught.value.reason == "messages[].role ... is no role"


def test_a_format_that_gives_nonsense_is_found_out(
    jsonl: Callable[..., Path], installed: Mapping[str, Offer[DataFormat]]
) -> None:
    offer = installed["alpaca"]
    config = parse_config({"model": "m", "data": {"train": [str(jsonl([{"instruction": "a", "output": "b"}]))]}})
    for given, words in ((None, "the format gave null"), ({"messages": [ANSWER]}, "begins with the assistant")):
        nonsense = replace(offer, value=replace(offer.value, convert=lambda row, given=given: given))
        with pytest.raises(DataError, match=words):
            open_source(config.data.train[0], {"alpaca": nonsense})
    failing = replace(offer, value=replace(offer.value, convert=lambda row: 1 / 0))
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        open_source(config.data.train[0], {"alpaca": failing})


def test_it_goes_to_another_process(opened: Callable[..., OpenSource]) -> None:
    source = opened([{"q": "Hi", "output": "Hello"}], columns={"instruction": "q"})
    (row,) = source.rows.rows()
    expected = source.convert(row)
    moved = ForkingPickler.loads(ForkingPickler.dumps(replace(source, rows=None)))
    assert moved.convert(row) == expected


@pytest.mark.parametrize(
    ("row", "source", "column"),
    [
        ({"conversations": [HUMAN, EMPTY], "system": "Be brief."}, {}, "conversations[1].value"),
        ({"chat": [HUMAN, EMPTY]}, {"columns": {"conversations": "chat"}}, "chat[1].value"),
        ({"conversations": [USER, ANSWER | {"content": " "}]}, {}, "conversations[1].content"),
        ({"conversations": [{"from": "gpt", "value": "Hi"}, HUMAN]}, {}, "conversations[0].from"),
        ({"conversations": [HUMAN]}, {}, "conversations"),
        ({"conversation": [USER, ANSWER | {"content": ""}]}, {}, "conversation[1].content"),
        ({"conversation": [ANSWER]}, {}, "conversation[0].role"),
    ],
)
def test_an_error_names_the_message_as_the_row_has_it(
    opened: Callable[..., OpenSource], row: Any, source: Any, column: str
) -> None:
    """A system text of its own column moves no number, and the canonical name `messages` is not what the file says."""
    with pytest.raises(BadRow) as caught:
        opened([row], **source)
    assert caught.value.where.endswith(f":1, column {column}")


def test_a_reference_that_calls_tools_is_the_whole_answer(opened: Callable[..., OpenSource]) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert converted(opened([{"messages": [USER, answer]}], kind="prompt")) == [{"messages": [USER], "reference": answer}]


@pytest.mark.parametrize(
    ("row", "columns", "column"),
    [
        ({"instruction": "Hi", "output": "\ud83d"}, {}, "output"),
        ({"conversations": [HUMAN, EMPTY | {"value": "x"}], "system": "\ud83d"}, {}, "system"),
        ({"conversations": [HUMAN, EMPTY | {"value": "\ud83d"}]}, {}, "conversations[1].value"),
        ({"prompt": "Hi", "chosen": "\ud83d", "rejected": "No"}, {}, "chosen"),
        ({"q": "Hi", "a": "\ud83d"}, {"question": "q", "response": "a"}, "a"),
    ],
)
def test_half_a_surrogate_pair_is_found_where_it_stands(
    tmp_path: Path, installed: Mapping[str, Offer[DataFormat]], row: Any, columns: Any, column: str
) -> None:
    """Valid in a JSON file as an escape, and no text that a tokenizer could read."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="ascii")
    config = parse_config({"model": "m", "data": {"train": [{"path": str(path), "columns": columns}]}})
    with pytest.raises(BadRow, match=r"broken Unicode escape, \\ud83d") as caught:
        open_source(config.data.train[0], installed)
    assert caught.value.where == f"{path}:1, column {column}"
