"""The contract of data formats: built-in ones pass it, and broken ones are caught by the check that is meant for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from luthier.core.errors import LuthierError
from luthier.core.extensions import DataFormat, RowError
from luthier.core.testing import DataFormatContract
from luthier.plugins import alpaca

HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


class TestAlpaca(DataFormatContract):
    format = "alpaca"
    rows = ({"instruction": "Hi", "input": "", "output": "Hello"}, {"instruction": "Hi", "output": "Hello", "system": "s"})
    canonical = ({"messages": [HI, HELLO]}, {"messages": [{"role": "system", "content": "s"}, HI, HELLO]})
    required = ("instruction", "output")
    others = ({"messages": []}, {"instruction": "Hi"})


class TestMessages(DataFormatContract):
    format = "messages"
    options: ClassVar[Mapping[str, Any]] = {"ignore": ["id"]}
    rows = ({"messages": [HI | {"id": 1}, HELLO]},)
    canonical = ({"messages": [HI, HELLO]},)
    required = ("messages",)


class TestSharegpt(DataFormatContract):
    format = "sharegpt"
    rows = ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},)
    canonical = ({"messages": [HI, HELLO]},)
    required = ("conversations",)


class TestDolly(DataFormatContract):
    format = "instruction_response"
    rows = ({"instruction": "Hi", "context": "", "response": "Hello"},)
    canonical = ({"messages": [HI, HELLO]},)
    required = ("instruction", "response")


class TestText(DataFormatContract):
    format = "text"
    rows = ({"text": "Once upon a time"},)
    canonical = ({"text": "Once upon a time"},)
    required = ("text",)


class TestUnpaired(DataFormatContract):
    format = "unpaired"
    rows = ({"prompt": "Hi", "completion": "Hello", "label": True},)
    canonical = ({"messages": [HI], "completion": [HELLO], "label": True},)
    required = ("prompt", "completion", "label")


class TestPreference(DataFormatContract):
    format = "preference"
    rows = ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"},)
    canonical = ({"messages": [HI], "chosen": [HELLO], "rejected": [{"role": "assistant", "content": "No"}]},)
    required = ("chosen", "rejected")


(GOOD,) = alpaca.luthier_data_formats()


def without_column(row: Any) -> Any:
    try:
        return alpaca.convert(row)
    except RowError as error:
        raise RowError(str(error)) from error


def by_index(row: Any) -> Any:
    return {
        "messages": [{"role": "user", "content": row["instruction"] + ""}, {"role": "assistant", "content": row["output"]}]
    }


def changing(row: Any) -> Any:
    made = alpaca.convert(row)
    row["output"] = "changed"
    return made


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        ("test_rows_are_recognised", {"detect": lambda row: False}),
        ("test_other_rows_are_not", {"detect": lambda row: True}),
        ("test_rows_become_what_they_should", {"convert": lambda row: {"messages": [HI, HELLO, HI, HELLO]}}),
        ("test_rows_become_what_they_should", {"convert": lambda row: {"messages": [HI]}}),
        ("test_a_row_stays_as_it_was", {"convert": changing}),
        ("test_a_missing_column_is_named", {"convert": without_column}),
        ("test_a_missing_column_is_named", {"convert": by_index}),
        ("test_values_of_a_wrong_type_are_a_fault_of_the_row", {"convert": by_index}),
    ],
)
def test_a_broken_format_is_caught(check: str, broken: dict[str, Callable[..., Any]]) -> None:
    contract: type[DataFormatContract] = type("Contract", (TestAlpaca,), {"format": replace(GOOD, **broken)})
    with pytest.raises((AssertionError, LuthierError, pytest.fail.Exception)):
        getattr(contract(), check)()


def test_a_contract_without_rows_says_so() -> None:
    contract: type[DataFormatContract] = type("Contract", (DataFormatContract,), {"format": "alpaca"})
    with pytest.raises(AssertionError, match="set `rows`"):
        contract().test_rows_are_recognised()


def test_a_third_party_format_needs_no_installation() -> None:
    made = DataFormat(name="x", summary="", kind="text", columns="t", detect=lambda row: "t" in row, convert=lambda row: row)
    contract: type[DataFormatContract] = type("Contract", (DataFormatContract,), {"format": made, "rows": ({"t": "a"},)})
    contract().test_rows_are_recognised()
