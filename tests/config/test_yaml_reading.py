"""Configuration files: what YAML means here, and every way in which a file can be unreadable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.core.config import load_config
from luthier.core.config.yaml_text import read_yaml
from luthier.core.errors import ConfigError, ExitCode, PlanRefused

GOOD = "model: m\ndata: {train: [rows.jsonl]}\n"


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.exit_code == ExitCode.REFUSED
    return caught.value


def write(folder: Path, text: str | bytes, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD + "optimizer: {use: adamw, lr: 2e-4}\n"))
    assert (config.model.name, config.data.train[0].path) == ("m", "rows.jsonl")
    assert config.optimizer.options["lr"] == 2e-4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1E3", 1000.0), ("+.5", 0.5), ("1.", 1.0), ("-3", -3), ("0", 0), ("010", 10), ("08", 8),
        ("0x1F", 31), ("0o17", 15), ("1_000", 1000), ("1:30", "1:30"), ("2024-01-02", "2024-01-02"),
        ("2024-01-02 10:00:00", "2024-01-02 10:00:00"), ("1.2.3", "1.2.3"), ("true", True), ("null", None), ("~", None),
        ("'8'", "8"), ("e4", "e4"), ("0x", "0x"), ("=", "="), ("12e", "12e"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    read = read_yaml(f"key: {text}", "f")["key"]
    assert read == value
    assert type(read) is type(value)


def test_merge_keys_are_merged_and_what_is_written_beside_them_wins() -> None:
    data = read_yaml("a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n", "f")
    assert data["b"] == {"x": 1, "y": 3}


def test_a_key_that_stands_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, "model: a\ndata: {train: [x]}\nmodel: b\n"))
    assert error.where == f"{tmp_path / 'run.yaml'}:3:1"
    assert "'model' stands twice (the first is in line 1)" in error.message


def test_a_nested_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, GOOD + "train:\n  seed: 1\n  seed: 2\n")).where.endswith(":5:3")


@pytest.mark.parametrize(
    ("text", "line_and_column", "said"),
    [
        ("model: [a, b\n", "2:1", "expected ',' or ']'"),
        ("model: a: b\n", "1:9", "mapping values are not allowed here"),
        ("model: 'a\n", "2:1", "unexpected end of stream"),
        ("a: 1\nb:\n\t- c\n", "3:1", "cannot start any token"),
        ("a: *nothing\n", "1:4", "undefined alias"),
        ("a: !!python/object/apply:os.system [ls]\n", "1:4", "for the tag"),
        ("a: !mine x\n", "1:4", "for the tag"),
        ("a: 1\nb: x\x00y\n", "2:5", "'\\x00' is not allowed"),
        ("---\na: 1\n---\nb: 1\n", "3:1", "another document"),
        ("? [a, b]\n: c\n", "1:3", "a key must be text"),
        ("{{a: 1}: 2}\n", "1:2", "a key must be text"),
        ("a: !!set {b}\n", "1:4", "for the tag"),
        ("a: !!timestamp x\n", "1:4", "for the tag"),
    ],
)
def test_what_is_no_yaml_has_its_line_and_column(tmp_path: Path, text: str, line_and_column: str, said: str) -> None:
    error = refusal(write(tmp_path, text))
    assert error.where == f"{tmp_path / 'run.yaml'}:{line_and_column}"
    assert "not readable as YAML" in error.message
    assert said in error.message


@pytest.mark.parametrize("text", ["a: !!int x", "a: !!float x", "a: !!bool perhaps", "a: " + "9" * 5000, "[" * 5000])
def test_values_that_yaml_itself_chokes_on(tmp_path: Path, text: str) -> None:
    assert "not readable as YAML" in refusal(write(tmp_path, text)).message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- model\n- data\n", "this is ['model', 'data'] (a list)"),
        ("just words\n", "this is 'just words' (text)"),
        ("42\n", "this is 42 (a number)"),
    ],
)
def test_a_file_that_is_no_mapping_says_what_it_is(tmp_path: Path, text: str, said: str) -> None:
    error = refusal(write(tmp_path, text))
    assert said in error.message
    assert error.where == str(tmp_path / "run.yaml")
    assert "model:" in error.fix


@pytest.mark.parametrize("data", [b"model: m\nname: \xff\xfe\n", "model: m\n".encode("utf-16"), b"model: m\nx: \xe4\n"])
def test_a_file_that_is_not_utf8_says_in_which_line(tmp_path: Path, data: bytes) -> None:
    error = refusal(write(tmp_path, data))
    assert "not UTF-8" in error.message
    assert error.where == f"{tmp_path / 'run.yaml'}:{1 if data[:1] == bytes([255]) else 2}"


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())).model.name == "m"


def test_a_missing_file_names_the_nearest_beside_it(tmp_path: Path) -> None:
    for name in ("alpaca.yaml", "other.yml", "notes.txt", ".hidden.yaml"):
        write(tmp_path, GOOD, name)
    error = refusal(tmp_path / "alpca.yaml")
    assert error.message == "there is no such configuration file"
    assert error.fix == f"did you mean {tmp_path / 'alpaca.yaml'}?"
    assert refusal(tmp_path / "zzz.yaml").fix == "there are: alpaca.yaml, other.yml"


def test_a_missing_file_in_a_missing_folder_says_so(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nowhere" / "run.yaml").fix


def test_a_missing_file_in_an_empty_folder_says_where_to_start(tmp_path: Path) -> None:
    assert "docs/quickstart.md" in refusal(tmp_path / "run.yaml").fix


def test_a_folder_is_no_configuration_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    error = refusal(tmp_path)
    assert "is a folder" in error.message
    assert "run.yaml" in error.fix


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).message


def test_a_file_below_a_file(tmp_path: Path) -> None:
    assert "no such configuration file" in refusal(write(tmp_path, GOOD) / "inner.yaml").message


def test_a_refused_configuration_names_its_file_once(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "trian: {seed: 1}\n")
    with pytest.raises(PlanRefused) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}: the configuration was refused: 1 problem\n  1. trian: unknown key\n     fix: did you mean `train`?"
    )


def test_a_file_that_contains_itself_or_multiplies_its_aliases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="contains itself"):
        load_config(write(tmp_path, GOOD + "adapter: &a {use: x, more: *a}\n"))
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    with pytest.raises(PlanRefused, match="aliases"):
        load_config(write(tmp_path, GOOD + bomb))
