"""Every way of giving the command line something wrong: a message that says what and where, and the right exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


def assert_refused(result: tuple[int, str, str], code: int, *words: str) -> None:
    """The exit code, every word in the message, and no traceback."""
    got, _, err = result
    assert got == code, err
    for word in words:
        assert word.lower() in err.lower(), f"{word!r} is not in:\n{err}"
    assert "Traceback" not in err


def test_missing_configuration_file(luthier: Run, tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("model: x\n")
    assert_refused(luthier("plan", tmp_path / "reel.yaml"), 2, "reel.yaml", "no such configuration", "real.yaml")


def test_not_yaml_names_line_and_column(luthier: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("model: x\ndata: [1, 2\nstage: sft\n")
    assert_refused(luthier("plan", path), 2, "broken.yaml:3:", "YAML")


def test_a_list_for_a_mapping(luthier: Run, tmp_path: Path, write_config: Write) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- model\n- data\n")
    assert_refused(luthier("plan", path), 2, "mapping", "list.yaml")
    assert_refused(luthier("plan", write_config(train=["epochs"])), 2, "train", "must be a mapping")


def test_unknown_keys_everywhere_with_suggestions(luthier: Run, write_config: Write) -> None:
    path = write_config(trian={"epochs": 1}, adapter={"use": "lora", "rnak": 8})
    assert_refused(luthier("plan", path), 2, "trian", "did you mean `train`")
    assert_refused(
        luthier("plan", write_config(adapter={"use": "lora", "rnak": 8})), 2, "adapter.rnak", "did you mean `rank`"
    )
    assert_refused(luthier("plan", write_config(), "train.epohcs=2"), 2, "train.epohcs", "`epochs`")
    assert_refused(luthier("plan", write_config(adapter="lroa")), 2, "lroa", "lora")


def test_wrong_type_and_out_of_bounds(luthier: Run, write_config: Write) -> None:
    assert_refused(luthier("plan", write_config(), "train.max_steps=many"), 2, "train.max_steps", "whole number", "many")
    assert_refused(luthier("plan", write_config(), "adapter.rank=0"), 2, "adapter.rank", "at least 1")
    assert_refused(luthier("plan", write_config(), "optimizer.lr=fast"), 2, "optimizer.lr", "a number")


def test_model_that_is_not_there(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    assert_refused(luthier("plan", write_config(model=str(tmp_path / "nowhere"))), 2, "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(luthier("plan", write_config(model=str(empty))), 2, "config.json", "empty")


def test_remote_code_needs_permission_and_is_not_run(
    luthier: Run, write_config: Write, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder("llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "code.HomeConfig", "AutoModelForCausalLM": "code.Home"}}
    (folder / "config.json").write_text(json.dumps(config))
    proof = tmp_path / "it-ran"
    (folder / "code.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    assert_refused(luthier("plan", write_config(model=str(folder))), 2, "trust_remote_code", str(folder))
    assert not proof.exists()


@pytest.mark.parametrize("keep", [0, 7, 2000])
def test_corrupt_weights(luthier: Run, write_config: Write, tiny_folder: Callable[..., Path], keep: int) -> None:
    folder = tiny_folder("llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert_refused(luthier("train", write_config(model=str(folder))), 2, "model.safetensors")


def test_missing_tensor(luthier: Run, write_config: Write, tiny_folder: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_folder("llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_refused(luthier("train", write_config(model=str(folder))), 2, "model.layers.1.mlp.up_proj.weight", str(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["rows.jsonl", "no rows"]),
        ('{"messages": []}\n{"messages": oops}\n', ["rows.jsonl:2"]),
        ('{"colour": "x"}\n', ["rows.jsonl:1", "colour", "columns"]),
        ('{"messages": "not a list"}\n', ["rows.jsonl:1", "messages"]),
    ],
)
def test_data_that_cannot_be_read(luthier: Run, write_config: Write, rows: Path, text: str, words: list[str]) -> None:
    rows.write_text(text)
    assert_refused(luthier("train", write_config()), 4, *words)


def test_rows_without_an_answer_are_prompts(luthier: Run, write_config: Write, rows: Path) -> None:
    """Nothing is wrong with such rows: they are for another stage, which the plan says."""
    rows.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    assert_refused(luthier("train", write_config()), 2, "rows.jsonl", "prompt", "conversation")


def test_row_without_the_column(luthier: Run, write_config: Write, rows: Path) -> None:
    with rows.open("a") as file:
        file.write('{"text": "no messages here"}\n')
    assert_refused(luthier("train", write_config()), 4, "rows.jsonl:13", "messages")


def test_no_supervised_token(luthier: Run, write_config: Write, rows: Path) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "y"}]}
    rows.write_text(json.dumps(long) + "\n")
    assert_refused(luthier("train", write_config()), 4, "max_length")


def test_missing_data_file(luthier: Run, write_config: Write, rows: Path) -> None:
    path = write_config(data={"train": [str(rows.with_name("rosw.jsonl"))]})
    assert_refused(luthier("plan", path), 4, "rosw.jsonl", "rows.jsonl")


def test_unwritable_output(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("I am here")
    assert_refused(luthier("train", write_config(output=str(blocker))), 2, str(blocker))
    assert_refused(luthier("train", write_config(output=str(blocker / "below"))), 2, str(blocker))
    assert blocker.read_text() == "I am here"
    if os.access("/proc", os.W_OK):
        assert_refused(luthier("train", write_config(output="/proc/nowhere/run")), 2, "/proc/nowhere")


def test_existing_output_is_never_touched(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    treasure = tmp_path / "run" / "thesis.tex"
    treasure.parent.mkdir()
    treasure.write_text("years of work")
    assert_refused(luthier("train", write_config()), 2, "--resume", "--overwrite", "run")
    assert_refused(luthier("train", write_config(), "--overwrite"), 2, "not made by Luthier")
    assert_refused(luthier("train", write_config(), "--resume"), 2, "checkpoint")
    assert treasure.read_text() == "years of work"


def test_every_problem_of_a_plan_is_said_at_once(luthier: Run, write_config: Write) -> None:
    path = write_config(
        adapter={"use": "lora", "target": ["mixer"]},
        optimizer="adamww",
        attention="flesh",
        train={"eval_every": 2, "max_steps": 3},
    )
    code, out, _ = luthier("plan", path, "--json")
    document = json.loads(out)
    text = json.dumps(document["problems"])
    assert code == 2
    assert len(document["problems"]) == 4
    for word in ("mixer", "adamww", "adamw", "flesh", "train.eval_every"):
        assert word in text


def test_json_errors_are_one_document(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    code, out, err = luthier("plan", tmp_path / "none.yaml", "--json")
    document: dict[str, Any] = json.loads(out)
    assert code == document["exit_code"] == 2
    assert "no such configuration" in document["error"]
    assert "no such configuration" in err


def test_debug_adds_the_traceback_and_changes_nothing_else(luthier: Run, write_config: Write) -> None:
    config = write_config(adapter="lroa")
    plain = luthier("plan", config, "--json")
    code, out, err = luthier("plan", config, "--json", "--debug")
    assert (code, out) == plain[:2]
    assert code == 2
    assert "Traceback" in err
    assert "Traceback" not in plain[2]
    assert err.endswith(plain[2])
